package org.pocketlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Assume.assumeTrue
import org.junit.Test
import org.pocketlm.core.tokenizer.Tokenizer
import java.io.File

/** The real SmolLM2-135M on ONNX Runtime. `make android-test` exports it; without it these tests are skipped, and say so. */
class SmolLmTest {
    private val folder = File(System.getProperty("bundles").orEmpty(), "smollm2-135m-onnx")

    private fun bundle(): Bundle {
        assumeTrue("no bundle at $folder; make one with: make android-test", folder.isDirectory)
        return Bundle.open(folder)
    }

    @Test
    fun `ids of the awkward texts are those of Python`() {
        val tokenizer = Tokenizer.open(bundle().file("tokenizer.json"))
        compareIds("SmolLM2", tokenizer, goldenJson("awkward_smollm2.json").asJsonObject.get("smollm2-135m").asJsonObject)
    }

    @Test
    fun `the golden file is reproduced within the certificate's tolerance`() {
        val bundle = bundle()
        bundle.checkHashes()
        OnnxRuntime.open(bundle.file("onnx"), 2).use { runtime ->
            val golden = Golden.open(bundle.file("golden.json"), bundle.manifest.vocabSize)
            val found = replay(golden, "onnx", runtime)!!
            println("SmolLM2 on ${runtime.description}: KL ${found.kl}, tolerance ${found.toleranceKl}, ${found.positions} positions")
            assertTrue("KL ${found.kl} exceeds ${found.toleranceKl}", found.passed)
        }
    }

    @Test
    fun `it answers, and a second turn reuses the cache`() {
        val bundle = bundle()
        val tokenizer = Tokenizer.open(bundle.file("tokenizer.json"))
        OnnxRuntime.open(bundle.file("onnx"), 2).use { runtime ->
            val chat = Chat(tokenizer, ChatTurns.open(bundle.file("chat_turns.json")), runtime.context, 32)
            val generator = Generator(runtime, tokenizer, bundle.manifest.stopTokens)
            val asked = listOf(Message("user", "What is the capital of France?"))
            val first = generator.answer(chat.fit(asked).tokens, Sampling(), 32, { false }) {}
            assertTrue(first.text, "Paris" in first.text)
            val talk = asked + Message("assistant", first.text) + Message("user", "And of Italy?")
            val second = generator.answer(chat.fit(talk).tokens, Sampling(), 16, { false }) {}
            assertTrue(second.timing.cachedTokens > first.timing.promptTokens)
        }
    }

    @Test
    fun `the cache gives what one pass gives`() {
        OnnxRuntime.open(bundle().file("onnx"), 2).use { runtime ->
            val tokens = intArrayOf(504, 3575, 282, 4649, 314)
            val whole = runtime.run(tokens).copyOf()
            runtime.reset()
            tokens.dropLast(1).forEach { runtime.run(intArrayOf(it)) }
            val stepped = runtime.run(intArrayOf(tokens.last()))
            assertEquals(likeliest(whole), likeliest(stepped))
            assertEquals(5, runtime.position)
        }
    }
}
