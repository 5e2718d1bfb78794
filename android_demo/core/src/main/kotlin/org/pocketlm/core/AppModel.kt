package org.pocketlm.core

import org.pocketlm.core.search.FactIndex
import org.pocketlm.core.search.IndexDatabase
import org.pocketlm.core.search.Search
import org.pocketlm.core.search.listOfSources
import org.pocketlm.core.tokenizer.Tokenizer
import java.io.File
import java.util.concurrent.Executor
import java.util.concurrent.atomic.AtomicBoolean

private const val MANIFEST = "pocketlm.json"
private const val FACTS = "facts.db"
private const val MAX_NEW_TOKENS = 512

/**
 * The app behind its views. Methods are called on the main thread and return at once; work runs on [worker], one job at a
 * time, and its results come back through [main].
 */
class AppModel(private val platform: Platform, private val worker: Executor, private val main: Executor, private val threads: Int) {
    var state: State = State.Choosing(emptyList(), null)
        private set
    private var loaded: Loaded? = null
    private var messages = listOf<Message>()
    private var sources = ""

    @Volatile private var searching = false // set on the main thread, read by the worker
    private var shown: (State) -> Unit = {}
    private var sampling = Sampling()

    private var latest = AtomicBoolean() // set: what was asked for last is to stop

    @Volatile private var running = latest

    /** [show] gets the state now and whenever it changes. */
    fun observe(show: (State) -> Unit) {
        shown = show
        show(state)
    }

    /** Looks for bundles again. */
    fun choose(notice: String? = null) = work("Looking for bundles") {
        close()
        val choices = platform.bundleFolders.flatMap { it.listFiles().orEmpty().toList() }
            .filter { !it.name.startsWith(".") && File(it, MANIFEST).isFile }.sortedBy { it.name }.map(::choice)
        State.Choosing(choices, notice)
    }

    private fun choice(folder: File): Choice =
        try {
            val manifest = Bundle.open(folder).manifest
            val target = target(manifest, null)
            Choice(folder, manifest.name, "${manifest.recipe}, $target, ${manifest.sizeBytes(target) / 1_000_000} MB", true)
        } catch (error: InputException) {
            Choice(folder, folder.name, error.message.orEmpty(), false)
        }

    private fun target(manifest: Manifest, wanted: String?): String =
        manifest.targets.firstOrNull { it in platform.runtimes && (wanted == null || it == wanted) } ?: throw InputException(
            "this app runs ${platform.runtimes.keys.joinToString(" and ")}${wanted?.let { ", $it was asked for" }.orEmpty()}, " +
                "and the bundle holds ${manifest.targets.joinToString(" and ")}; export with --to ${platform.runtimes.keys.first()}",
        )

    /** Opens a bundle and starts a conversation; [restored] is one that a killed process left behind. */
    fun open(folder: File, restored: List<Message> = emptyList(), search: Boolean = false) = work("Loading ${folder.name}") {
        val now = load(folder, null)
        messages = restored
        searching = search
        sources = ""
        chatting(notice = now.factsProblem?.let { "search: $it" })
    }

    /** Whether the next answers are looked up in the bundle's index. */
    fun search(on: Boolean) {
        searching = on
        (state as? State.Chatting)?.let { publish(it.copy(search = it.search?.let { on })) }
    }

    /** The conversation as text, for a process that may be killed; null if there is none. */
    fun snapshot(): String? = loaded?.let { now ->
        val talk = messages.map { jsonOf("role" to it.role, "content" to it.content) }
        jsonOf("folder" to now.bundle.folder.path, "search" to searching, "messages" to talk).toString()
    }

    /** Opens what [snapshot] described. */
    fun restore(text: String) {
        val content = parseJson(text).asObject("snapshot")
        val talk = content.array("messages").map { it.asObject("message").run { Message(text("role"), text("content")) } }
        open(File(content.text("folder")), talk, content.flag("search"))
    }

    private fun load(folder: File, wanted: String?): Loaded {
        close()
        val bundle = Bundle.open(folder)
        val target = target(bundle.manifest, wanted)
        memoryNeed(bundle.manifest, target, platform.availableMemoryBytes()).refusal?.let { throw InputException(it) }
        if (!bundle.checkHashes { share -> report("Checking ${bundle.manifest.name}", share) }) throw InputException("loading was stopped")
        report("Loading ${bundle.manifest.name}", null)
        val open = platform.runtimes.getValue(target)
        return Loaded(bundle, target, platform::openIndex) { open(bundle.file(target), threads) }.also { loaded = it }
    }

    private fun close() {
        loaded?.runtime?.close()
        loaded?.facts?.close()
        loaded = null
    }

    private fun chatting(streaming: String? = null, notice: String? = null) =
        State.Chatting(loaded!!.bundle.manifest.name, messages, streaming, notice, loaded!!.facts?.let { searching }, sources)

    /** Asks the model; the answer streams into the state. */
    fun send(text: String) {
        val asked = messages + Message("user", text)
        work(null) {
            val now = loaded!!
            try {
                sources = ""
                val prompt = now.chat.prepare(asked, now.facts?.takeIf { searching }?.let { Search(listOf(it)) })
                val kept = prompt.messages
                messages = kept
                val answer = stream(now, prompt.tokens)
                messages = if (answer.text.isBlank()) kept.dropLast(1) else kept + Message("assistant", answer.text)
                sources = listOfSources(prompt.passages)
                chatting(notice = (prompt.notes + notice(answer, asked.size - kept.size)).joinToString("\n"))
            } catch (error: InputException) {
                messages = asked.dropLast(1)
                chatting(notice = error.message)
            }
        }
    }

    private fun stream(now: Loaded, tokens: List<Int>): Answer {
        val text = StringBuilder()
        publish(chatting(""))
        return now.generator.answer(tokens, sampling, MAX_NEW_TOKENS, { running.get() }) {
            text.append(it)
            publish(chatting(text.toString()))
        }
    }

    private fun notice(answer: Answer, forgotten: Int): String {
        val end = when (answer.end) {
            End.STOP_TOKEN -> ""
            End.LENGTH -> "cut at $MAX_NEW_TOKENS tokens, "
            End.CONTEXT -> "cut, the context is full, "
            End.CANCELLED -> "stopped, "
        }
        val old = if (forgotten > 0) "$forgotten old messages were forgotten, " else ""
        val rate = answer.timing.decodeTokensPerSecond?.let { "%.1f tokens/s, ".format(it) }.orEmpty()
        return "$end$old${rate}first token after %.2f s".format(answer.timing.timeToFirstTokenSeconds)
    }

    fun certificate() = work(null) { certificateReport(loaded!!.bundle.manifest) }

    fun backToChat() = work(null) { chatting() }

    /** Replays golden.json on this phone. */
    fun verify() = work("Verifying on this phone") {
        val now = loaded!!
        replayed(now)?.let(::verifyReport) ?: chatting(notice = "verifying was stopped")
    }

    private fun replayed(now: Loaded): Replay? {
        now.generator = now.newGenerator() // the cache will hold other tokens
        val golden = Golden.open(now.bundle.file("golden.json"), now.bundle.manifest.vocabSize)
        return replay(golden, now.target, now.runtime) { share -> report("Verifying on this phone", share) }
    }

    fun bench(settings: BenchSettings) = work("Benchmark") {
        val folder = loaded!!.bundle.folder
        val result = measure(loaded!!, settings)
        load(folder, null)
        result?.let { benchReport(it) } ?: chatting(notice = "the benchmark was stopped")
    }

    /** The loaded model is closed first: two would not fit. */
    private fun measure(now: Loaded, settings: BenchSettings): BenchResult? {
        close()
        val open = platform.runtimes.getValue(now.target)
        val benchmark = Benchmark(settings, now.bundle.manifest.vocabSize, platform.sensors) { open(now.bundle.file(now.target), settings.threads) }
        return benchmark.run { share -> report("Benchmark", share) }
    }

    /** Does what an intent asked for and writes the results, or the reason why there are none. */
    fun automate(task: Automation) = work("Loading ${task.bundle}") {
        val file = File(platform.resultsFolder, "${task.id}.json")
        try {
            results(task).write(file)
            State.Report("Done", true, listOf(Row("Results", file.path)))
        } catch (error: InputException) {
            Results(platform.device, task.bundle, "", error = error.message).write(file)
            throw error
        }
    }

    private fun results(task: Automation): Results {
        val folder = platform.bundleFolders.map { File(it, task.bundle) }.firstOrNull { File(it, MANIFEST).isFile }
            ?: throw InputException("there is no bundle ${task.bundle} on this phone; install it with: pocketlm device install")
        val now = load(folder, task.target)
        val replay = if (task.verify) replayed(now) ?: throw InputException("it was stopped on the phone") else null
        val bench = task.bench?.let { measure(now, it) ?: throw InputException("it was stopped on the phone") }
        val hash = sha256(File(folder, MANIFEST)).orEmpty()
        return Results(
            platform.device, now.bundle.manifest.name, hash, listOfNotNull(replay),
            bench?.let { mapOf(now.target to it) }.orEmpty(), task.bench,
        )
    }

    /** Runs [copy], which brings a bundle into the app's own folder, then chooses again. */
    fun import(copy: (File, (Double?) -> Boolean) -> Unit) = work("Importing") {
        copy(platform.bundleFolders.first()) { share -> report("Importing", share) }
        main.execute { choose() }
        State.Busy("Importing", 1.0)
    }

    /** Stops an answer, a verification or a benchmark. */
    fun stop() {
        latest.set(true)
    }

    private fun report(what: String, share: Double?): Boolean {
        publish(State.Busy(what, share))
        return !running.get()
    }

    private fun publish(next: State) = main.execute {
        state = next
        shown(next)
    }

    /** New work stops what is under way: its user wants something else. */
    private fun work(what: String?, job: () -> State) {
        latest.set(true)
        val stopped = AtomicBoolean().also { latest = it }
        if (what != null) publish(State.Busy(what, null))
        worker.execute {
            running = stopped
            try {
                publish(job())
            } catch (error: InputException) {
                main.execute { choose(error.message) }
            } catch (_: OutOfMemoryError) {
                main.execute { choose("the phone's memory is not enough for this model; close other apps or take a smaller one") }
            }
        }
    }
}

/** An opened bundle; its small files are read before the model is loaded. */
private class Loaded(val bundle: Bundle, val target: String, openIndex: (File) -> IndexDatabase, open: () -> LlmRuntime) {
    /** Why there is no search although the bundle has an index. */
    var factsProblem: String? = null
        private set
    private val tokenizer = Tokenizer.open(bundle.file("tokenizer.json"))
    val chat: Chat = run {
        val file = bundle.file("chat_turns.json")
        if (!file.isFile) throw InputException(bundle.manifest.notes.firstOrNull { "chat_turns" in it } ?: "the bundle has no chat_turns.json")
        Chat(tokenizer, ChatTurns.open(file), bundle.manifest.context, MAX_NEW_TOKENS)
    }
    val runtime = open()
    val facts: FactIndex? = bundle.file(FACTS).takeIf { it.isFile }?.let { file ->
        try {
            FactIndex.open(openIndex(file))
        } catch (error: InputException) {
            factsProblem = error.message
            null
        }
    }
    var generator = newGenerator()

    fun newGenerator() = Generator(runtime, tokenizer, bundle.manifest.stopTokens)
}
