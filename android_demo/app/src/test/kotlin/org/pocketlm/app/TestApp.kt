package org.pocketlm.app

import com.google.gson.JsonObject
import com.google.gson.JsonParser
import org.pocketlm.core.AppModel
import org.pocketlm.core.Device
import org.pocketlm.core.LlmRuntime
import org.pocketlm.core.Platform
import org.pocketlm.core.tokenizer.Tokenizer
import java.io.File
import java.util.concurrent.Executor

const val ANSWER = "The capital of France is Paris."
private const val VOCABULARY = 607 // of the bundle in tests/golden

/** The app with a phone that the tests control, and with work that is done at once. */
class TestApp : PocketApp() {
    var availableBytes = 4_000_000_000L
    var opened = 0
    private var context = 128
    var asked = "" // the last prompt
    var failure: Exception? = null
    var whileAnswering: () -> Unit = {}
    val bundles: File by lazy { File(filesDir, "bundles") }
    private val resultsFolder: File by lazy { File(filesDir, "results") }

    fun installGoodBundle() {
        File(System.getProperty("golden"), "bundle/good").copyRecursively(File(bundles, "tiny"), overwrite = true)
    }

    /** The bundle's context, which is too short for passages. */
    fun enlargeContext(tokens: Int) {
        val manifest = File(bundles, "tiny/pocketlm.json")
        manifest.writeText(manifest.readText().replace("\"context\": $context,", "\"context\": $tokens,"))
        context = tokens
    }

    fun results(id: String): JsonObject = JsonParser.parseString(File(resultsFolder, "$id.json").readText()).asJsonObject

    override val model: AppModel get() = current ?: createModel().also { current = it }
    private var current: AppModel? = null

    /** As if the process had ended. */
    fun forget() {
        current = null
    }

    override fun createModel(): AppModel {
        val now = Executor { it.run() }
        return AppModel(phone, now, now, 1)
    }

    private val phone = object : Platform {
        override val device = Device("Test Phone", "14 (API 34)", "arm64-v8a", 8, 8_000_000_000)
        override val sensors get() = AndroidSensors(this@TestApp)
        override val bundleFolders get() = listOf(bundles)
        override val resultsFolder get() = this@TestApp.resultsFolder
        override val runtimes: Map<String, (File, Int) -> LlmRuntime> = mapOf("onnx" to { folder, _ -> open(folder) })

        override fun availableMemoryBytes() = availableBytes

        override fun openIndex(file: File) = AndroidIndexDatabase.open(file)
    }

    private fun open(folder: File): LlmRuntime {
        failure?.let { throw it }
        opened++
        return Answering(Tokenizer.open(File(folder.parentFile, "tokenizer.json")))
    }

    /** Writes [ANSWER], one token a call, whatever it is asked. */
    private inner class Answering(private val tokenizer: Tokenizer) : LlmRuntime {
        private val answer = tokenizer.encode(ANSWER, fromTemplate = false) + tokenizer.id("<|im_end|>")!!
        private var calls = 0
        override val context get() = this@TestApp.context
        override val description = "a script"
        override var position = 0
            private set

        override fun run(tokens: IntArray): FloatArray {
            if (tokens.size > 1) calls = 0
            if (tokens.size > 1) asked = tokenizer.decode(tokens.toList())
            if (calls == 2) whileAnswering()
            position += tokens.size
            val next = answer[calls++ % answer.size]
            return FloatArray(VOCABULARY) { if (it == next) 10f else 0f }
        }

        override fun reset() {
            position = 0
        }

        override fun close() = Unit
    }
}
