package org.pocketlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

class BenchmarkTest {
    private var now = 0.0

    /** Takes a second for a prompt and an eighth for a token, by the test's own clock. */
    private inner class TimedRuntime(private val inner: ScriptedRuntime = ScriptedRuntime(listOf(FloatArray(50)))) : LlmRuntime by inner {
        override fun run(tokens: IntArray): FloatArray {
            now += if (tokens.size > 1) 1.0 else 0.125
            return inner.run(tokens)
        }
    }

    private object FixedSensors : Sensors {
        override fun read() = Reading(-350.0, 31.5, "none")

        override fun peakMemoryBytes() = 123L
    }

    private fun benchmark(settings: BenchSettings) = Benchmark(settings, 50, FixedSensors, { now }) {
        now += 2.0
        TimedRuntime()
    }

    @Test
    fun `a run is timed in its parts`() {
        val result = benchmark(BenchSettings(promptTokens = 20, newTokens = 10, runs = 3)).run()!!
        assertEquals(2.0, result.firstLoadSeconds, 1e-9)
        assertEquals(3, result.runs.size)
        result.runs.forEach {
            assertEquals(20.0, it.prefillTokensPerSecond, 1e-6)
            assertEquals(8.0, it.decodeTokensPerSecond, 1e-6)
            assertEquals(1.0, it.timeToFirstTokenSeconds, 1e-6)
        }
        assertTrue(result.sustained.isEmpty())
    }

    @Test
    fun `a sustained run goes on until its time is over`() {
        val result = benchmark(BenchSettings(promptTokens = 20, newTokens = 10, runs = 1, sustainedSeconds = 7)).run()!!
        assertEquals(listOf(2.25, 4.5, 6.75, 9.0), result.sustained.map { it.atSeconds })
    }

    @Test
    fun `it can be stopped, and refuses what does not fit`() {
        assertNull(benchmark(BenchSettings(promptTokens = 20, newTokens = 10, runs = 3)).run { false })
        assertTrue(refusal { benchmark(BenchSettings(promptTokens = 1000)).run() }.contains("do not fit the context"))
    }

    @Test
    fun `results are written as the command line reads them`() {
        val settings = BenchSettings(promptTokens = 20, newTokens = 10, runs = 2, sustainedSeconds = 3)
        val result = benchmark(settings).run()!!
        val device = Device("Phone 1", "14 (API 34)", "arm64-v8a", 8, 8_000_000_000)
        val replays = listOf(Replay("onnx", 0.004, 0.01, 64, 3.0), Replay("executorch", Double.POSITIVE_INFINITY, 0.01, 64, 3.0))
        val json = Results(device, "tiny", "ab".repeat(32), replays, mapOf("onnx" to result), settings).toJson()
        val file = File(GOLDEN, "device_results.json")
        assertEquals(parseJson(file.readText()), parseJson(json.toString()))
    }
}
