package org.pocketlm.core

/** What a phone tells about itself while it computes; null where it does not. */
data class Reading(val batteryMilliamperes: Double?, val temperatureCelsius: Double?, val thermalStatus: String?)

interface Sensors {
    fun read(): Reading

    /** Largest resident memory of the process so far, bytes. */
    fun peakMemoryBytes(): Long
}

data class BenchSettings(
    val promptTokens: Int = 256,
    val newTokens: Int = 64,
    val runs: Int = 5,
    val threads: Int = 4,
    val sustainedSeconds: Int = 0,
)

/** One run: prefill of the prompt, then decoding. */
data class BenchRun(val prefillTokensPerSecond: Double, val decodeTokensPerSecond: Double, val timeToFirstTokenSeconds: Double)

/** A window of a sustained run. */
data class Window(val atSeconds: Double, val decodeTokensPerSecond: Double, val reading: Reading)

data class BenchResult(
    val firstLoadSeconds: Double,
    val laterLoadSeconds: Double,
    val runs: List<BenchRun>,
    val sustained: List<Window>,
    val before: Reading,
    val after: Reading,
    val peakMemoryBytes: Long,
    val runtime: String,
)

/** Measures an artifact the way `pocketlm bench` does on a computer, with what only a phone has besides. */
class Benchmark(
    private val settings: BenchSettings,
    private val vocabSize: Int,
    private val sensors: Sensors,
    private val clock: Clock = SYSTEM_CLOCK,
    private val load: () -> LlmRuntime,
) {
    /** [progress] gets the share that is done and cancels by returning false: then the result is null. */
    fun run(progress: (Double) -> Boolean = { true }): BenchResult? {
        val steps = settings.runs + 3.0 + if (settings.sustainedSeconds > 0) settings.runs else 0
        val before = sensors.read()
        val (runtime, firstLoad) = timed(load)
        val tokens = randomTokens()
        val series = mutableListOf<BenchRun>()
        val windows: List<Window>
        val description = runtime.description
        runtime.use {
            checkRoom(it)
            once(it, tokens) // touches every page of the weights
            for (run in 1..settings.runs) {
                if (!progress(run / steps)) return null
                series += once(it, tokens)
            }
            windows = sustained(it, tokens) { share -> progress((settings.runs + 1 + share * settings.runs) / steps) } ?: return null
        }
        val (again, laterLoad) = timed(load)
        again.close()
        progress(1.0)
        return BenchResult(firstLoad, laterLoad, series, windows, before, sensors.read(), sensors.peakMemoryBytes(), description)
    }

    private fun checkRoom(runtime: LlmRuntime) {
        val needed = settings.promptTokens + settings.newTokens
        if (needed > runtime.context) throw InputException("$needed tokens do not fit the context of ${runtime.context}; ask for fewer")
    }

    private fun randomTokens(): IntArray = Uniforms(0u).let { random -> IntArray(settings.promptTokens) { (random.next() * vocabSize).toInt() } }

    private fun once(runtime: LlmRuntime, tokens: IntArray): BenchRun {
        runtime.reset()
        val started = clock()
        var token = likeliest(runtime.run(tokens))
        val first = clock()
        repeat(settings.newTokens) { token = likeliest(runtime.run(intArrayOf(token))) }
        val ended = clock()
        return BenchRun(tokens.size / (first - started), settings.newTokens / (ended - first), first - started)
    }

    /** Runs back to back until the time is over: phones slow down when they get warm. */
    private fun sustained(runtime: LlmRuntime, tokens: IntArray, progress: (Double) -> Boolean): List<Window>? {
        val windows = mutableListOf<Window>()
        val started = clock()
        while (clock() - started < settings.sustainedSeconds) {
            val run = once(runtime, tokens)
            windows += Window(clock() - started, run.decodeTokensPerSecond, sensors.read())
            if (!progress(((clock() - started) / settings.sustainedSeconds).coerceAtMost(1.0))) return null
        }
        return windows
    }

    private fun <T> timed(work: () -> T): Pair<T, Double> {
        val started = clock()
        return work() to clock() - started
    }
}

internal fun likeliest(logits: FloatArray): Int {
    var best = 0
    for (i in logits.indices) if (logits[i] > logits[best]) best = i
    return best
}
