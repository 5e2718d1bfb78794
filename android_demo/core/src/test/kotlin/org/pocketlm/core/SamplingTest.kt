package org.pocketlm.core

import com.google.gson.JsonObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class SamplingTest {
    private val golden = goldenJson("sampling.json").asJsonObject

    @Test
    fun `random numbers are those of Python`() {
        val random = Uniforms(0u)
        golden.get("first_uniforms_of_seed_0").asJsonArray.forEach { assertEquals(it.asDouble, random.next(), 0.0) }
    }

    @Test
    fun `draws are those of Python`() {
        val logits = golden.get("logits").asJsonArray.map { row -> row.asJsonArray.map { it.asFloat }.toFloatArray() }
        golden.get("cases").objects().forEach { assertEquals(it.get("sampling").toString(), it.get("tokens").tokens(), draw(logits, it)) }
    }

    @Test
    fun `draws from a large vocabulary are those of Python`() {
        val large = golden.get("large").asJsonObject
        val logits = large.get("rows").asJsonArray.map { generated(it.asJsonArray, large.get("vocab_size").asInt) }
        large.get("cases").objects().forEach { assertEquals(it.get("sampling").toString(), it.get("tokens").tokens(), draw(logits, it)) }
    }

    private fun draw(logits: List<FloatArray>, case: JsonObject): List<Int> {
        val sampling = sampling(case.get("sampling").asJsonObject)
        val random = Uniforms(sampling.seed)
        val history = case.get("history").tokens().toMutableList()
        logits.forEach { history += sample(it, sampling, history, random) }
        return history.takeLast(logits.size)
    }

    private fun sampling(settings: JsonObject) = Sampling(
        settings.get("temperature").asDouble, settings.get("top_k").asInt, settings.get("top_p").asDouble,
        settings.get("min_p").asDouble, settings.get("repetition_penalty").asDouble, settings.get("seed").asString.toULong(),
    )

    @Test
    fun `quickselect finds what sorting finds`() {
        val random = Uniforms(3u)
        for (size in listOf(1, 2, 7, 100)) {
            val values = DoubleArray(size) { (random.next() * 10).toInt().toDouble() }
            for (count in 1..size) assertEquals(values.sortedDescending()[count - 1], largest(values, count), 0.0)
        }
    }

    @Test
    fun `logits that are not numbers are refused`() {
        for (value in listOf(Float.NaN, Float.POSITIVE_INFINITY)) {
            for (sampling in listOf(Sampling(), Sampling(temperature = 1.0))) {
                assertTrue(refusal { sample(floatArrayOf(1f, value), sampling, emptyList(), Uniforms(0u)) }.contains("not finite"))
            }
        }
        assertEquals(1, sample(floatArrayOf(Float.NEGATIVE_INFINITY, 1f), Sampling(), emptyList(), Uniforms(0u)))
    }

    @Test
    fun `settings out of range are refused by name`() {
        assertTrue(refusal { Sampling(temperature = Double.NaN) }.startsWith("temperature must be"))
        assertTrue(refusal { Sampling(topK = -1) }.startsWith("top_k must be"))
        assertTrue(refusal { Sampling(topP = 0.0) }.startsWith("top_p must be"))
        assertTrue(refusal { Sampling(minP = 1.5) }.startsWith("min_p must be"))
        assertTrue(refusal { Sampling(repetitionPenalty = 0.0) }.startsWith("repetition_penalty must be"))
    }
}
