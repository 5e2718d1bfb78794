package org.pocketlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

class GoldenTest {
    private val vectors = goldenJson("replay.json").asJsonObject
    private val size = vectors.get("vocab_size").asInt
    private val golden = Golden.open(File(GOLDEN, "bundle/good/golden.json"), size)

    /** What a runtime gives from the prompt on: zeros until the kept positions. */
    private fun runtime(rows: List<List<FloatArray>>): ScriptedRuntime {
        val before = golden.first - (golden.prefill - 1)
        return ScriptedRuntime(rows.flatMap { row -> List(before) { FloatArray(size) } + row })
    }

    private fun rows(index: Int) = vectors.get("cases").objects()[index].get("rows").asJsonArray.map { row ->
        row.asJsonArray.map { generated(it.asJsonArray, size) }
    }

    @Test
    fun `replays give Python's figures`() {
        for ((index, case) in vectors.get("cases").objects().withIndex()) {
            val found = replay(golden, "onnx", runtime(rows(index)))!!
            val kl = case.get("kl").asDouble
            assertEquals(case.get("name").asString, kl, found.kl, 1e-12 + 1e-9 * kl)
            assertEquals(case.get("passes").asBoolean, found.passed)
            assertEquals(8, found.positions)
        }
    }

    @Test
    fun `sequences are fed as an app feeds them`() {
        val runtime = runtime(rows(0))
        replay(golden, "onnx", runtime)
        val tokens = golden.sequences[0].toList()
        assertEquals(listOf(tokens.take(8)) + tokens.drop(8).map(::listOf), runtime.fed.take(17))
    }

    @Test
    fun `a core is held to the arithmetic that it computes in`() {
        val right = golden.targets.getValue("onnx")
        val wrong = GoldenTarget(right.toleranceKl, right.expected.reversed())
        val both = Golden(golden.prefill, golden.first, golden.sequences, mapOf("onnx" to wrong, "onnx-arm64" to right))
        val found = replay(both, "onnx", runtime(rows(0)))!!
        assertEquals("onnx" to "onnx-arm64", found.target to found.arithmetic)
        assertTrue(found.passed)
        val neither = Golden(golden.prefill, golden.first, golden.sequences, mapOf("onnx" to wrong, "onnx-arm64" to wrong))
        assertFalse(replay(neither, "onnx", runtime(rows(0)))!!.passed)
    }

    @Test
    fun `a logit that is no number never passes`() {
        for (value in listOf(Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY)) {
            val rows = rows(0)
            rows[1][2][golden.targets.getValue("onnx").expected[1][2].ids[0]] = value
            assertFalse(replay(golden, "onnx", runtime(rows))!!.passed)
        }
    }

    @Test
    fun `a replay can be stopped, and needs its target`() {
        assertNull(replay(golden, "onnx", runtime(rows(0))) { it < 0.5 })
        assertTrue(refusal { replay(golden, "executorch", runtime(rows(0))) }.contains("nothing for executorch"))
    }
}
