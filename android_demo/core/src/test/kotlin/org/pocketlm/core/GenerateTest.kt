package org.pocketlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import org.pocketlm.core.tokenizer.Tokenizer
import java.io.File

class GenerateTest {
    private val tokenizer = Tokenizer.open(File(GOLDEN, "tokenizers/smollm2.json"))
    private val stop = tokenizer.id("<|im_end|>")!!
    private val size = 700

    private fun script(text: String) = (tokenizer.encode(text, fromTemplate = false) + stop).map { peak(it, size) }

    @Test
    fun `an answer is streamed up to the stop token`() {
        val runtime = ScriptedRuntime(script("na\u00efve \ud83d\ude00!"))
        val shown = mutableListOf<String>()
        val answer = Generator(runtime, tokenizer, setOf(stop)).answer(listOf(5, 6), Sampling(), 100, { false }) { shown += it }
        assertEquals("na\u00efve \ud83d\ude00!", answer.text)
        assertEquals(answer.text, shown.joinToString(""))
        assertTrue(shown.none { '\ufffd' in it })
        assertEquals(End.STOP_TOKEN, answer.end)
        assertEquals(listOf(5, 6), runtime.fed[0])
        assertEquals(answer.tokens.size, answer.timing.generatedTokens)
    }

    @Test
    fun `a conversation runs only what is new`() {
        val runtime = ScriptedRuntime(script("a"))
        val generator = Generator(runtime, tokenizer, setOf(stop))
        val first = generator.answer(listOf(5, 6), Sampling(), 10, { false }) {}
        generator.answer(listOf(5, 6) + first.tokens + 9, Sampling(), 10, { false }) {}
        assertEquals(first.tokens.takeLast(1) + 9, runtime.fed[2])
        val third = generator.answer(listOf(7), Sampling(), 10, { false }) {}
        assertEquals(listOf(7), runtime.fed[4])
        assertEquals(0, third.timing.cachedTokens)
    }

    @Test
    fun `an answer ends where it must`() {
        val endless = listOf(peak(9, size))
        fun ends(context: Int, limit: Int, cancelAfter: Int): Answer {
            var asked = 0
            return Generator(ScriptedRuntime(endless, context), tokenizer, setOf(stop)).answer(listOf(5), Sampling(), limit, { asked++ >= cancelAfter }) {}
        }
        assertEquals(End.LENGTH to 3, ends(100, 3, 99).let { it.end to it.tokens.size })
        assertEquals(End.CONTEXT to 8, ends(8, 99, 99).let { it.end to it.tokens.size })
        assertEquals(End.CANCELLED to 4, ends(100, 99, 4).let { it.end to it.tokens.size })
        assertEquals(End.CANCELLED to 0, ends(100, 99, 0).let { it.end to it.tokens.size })
        assertNull(ends(100, 99, 0).timing.decodeTokensPerSecond)
    }

    @Test
    fun `prompts that cannot be run are refused`() {
        val generator = Generator(ScriptedRuntime(listOf(peak(9, size)), 4), tokenizer, setOf(stop))
        assertTrue(refusal { generator.answer(emptyList(), Sampling(), 9, { false }) {} }.contains("the prompt is empty"))
        assertTrue(refusal { generator.answer(List(5) { 1 }, Sampling(), 9, { false }) {} }.contains("the context holds 4"))
        assertTrue(refusal { generator.answer(listOf(1), Sampling(), 0, { false }) {} }.contains("at least 1"))
    }
}
