package org.pocketlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

/** A model whose graph keeps keys and values in int8: tests/golden/int8_cache, and what Python says after its prompt. */
class Int8CacheTest {
    private val folder = File(GOLDEN, "int8_cache/onnx")
    private val greedy = goldenJson("int8_cache/greedy.json").asJsonObject
    private val prompt = greedy.get("prompt").tokens()
    private val continuation = greedy.get("continuation").tokens()

    private fun continued(runtime: LlmRuntime, first: FloatArray): List<Int> {
        var logits = first
        return continuation.map {
            likeliest(logits).also { token -> if (runtime.position < runtime.context) logits = runtime.run(intArrayOf(token)) }
        }
    }

    @Test
    fun `it continues as in Python`() = OnnxRuntime.open(folder, 1).use { runtime ->
        assertTrue(continuation.size > 4)
        assertEquals(continuation, continued(runtime, runtime.run(prompt.toIntArray())))
    }

    @Test
    fun `token by token and after a reset it does so too`() = OnnxRuntime.open(folder, 1).use { runtime ->
        runtime.run(intArrayOf(1, 2, 3))
        runtime.reset()
        var logits = FloatArray(0)
        prompt.forEach { logits = runtime.run(intArrayOf(it)) }
        assertEquals(continuation, continued(runtime, logits))
    }
}
