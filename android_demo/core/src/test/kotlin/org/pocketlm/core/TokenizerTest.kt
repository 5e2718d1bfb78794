package org.pocketlm.core

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import com.google.gson.JsonObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.pocketlm.core.tokenizer.StreamDecoder
import org.pocketlm.core.tokenizer.Tokenizer
import java.io.File

class TokenizerTest {
    private val kinds = goldenJson("awkward_ids.json").asJsonObject.entrySet().map { it.key to it.value.asJsonObject }

    private fun tokenizer(name: String) = Tokenizer.open(File(GOLDEN, name))

    @Test
    fun `ids of the awkward texts are those of Python`() {
        for ((kind, entry) in kinds) compareIds(kind, tokenizer(entry.get("tokenizer").asString), entry)
    }

    @Test
    fun `streams show what Python shows`() {
        for ((kind, entry) in kinds) {
            val tokenizer = tokenizer(entry.get("tokenizer").asString)
            for (stream in entry.get("streams").objects()) {
                val decoder = StreamDecoder(tokenizer)
                val tokens = stream.get("tokens").tokens()
                val pieces = tokens.map(decoder::add) + decoder.finish()
                assertEquals("$kind $tokens", stream.get("pieces").asJsonArray.map { it.asString }, pieces)
                assertEquals(tokenizer.decode(tokens), pieces.joinToString(""))
            }
        }
    }

    @Test
    fun `random texts have the ids of the library`() {
        for ((kind, entry) in kinds) {
            val file = File(GOLDEN, entry.get("tokenizer").asString)
            HuggingFaceTokenizer.newInstance(file.toPath()).use { library ->
                val tokenizer = Tokenizer.open(file)
                val random = Uniforms(11u)
                repeat(300) {
                    val text = randomText(random)
                    val expected = library.encode(text, false, false).ids.map { it.toInt() }
                    assertEquals("$kind ${text.map { it.code }}", expected, tokenizer.encode(text, fromTemplate = true))
                }
            }
        }
    }

    /** Pieces of all awkward texts in any order. */
    private fun randomText(random: Uniforms): String {
        val texts = texts().values.filter { it.isNotEmpty() }
        return (0..(random.next() * 5).toInt()).joinToString("") {
            val text = texts[(random.next() * texts.size).toInt()]
            val codes = text.codePoints().toArray()
            val start = (random.next() * codes.size).toInt()
            String(codes, start, minOf(codes.size - start, 1 + (random.next() * 12).toInt()))
        }
    }

    @Test
    fun `lone surrogates are refused`() {
        assertTrue(refusal { tokenizer("tokenizers/smollm2.json").encode("a\ud800b", fromTemplate = false) }.contains("not valid Unicode"))
    }

    @Test
    fun `what the app does not know is refused by name`() {
        val good = File(GOLDEN, "tokenizers/llama_2.json").readText()
        val cases = listOf(
            "\"type\":\"BPE\"" to "\"type\":\"Unigram\"",
            "\"type\":\"Prepend\"" to "\"type\":\"Nmt\"",
            "\"type\":\"Fuse\"" to "\"type\":\"CTC\"",
        )
        val file = File.createTempFile("tokenizer", ".json")
        for ((known, unknown) in cases) {
            assertTrue(good.contains(known))
            file.writeText(good.replace(known, unknown))
            assertTrue(refusal { Tokenizer.open(file) }.contains(unknown.substringAfter(":\"").dropLast(1)))
        }
        for (damaged in listOf("", "{", good.dropLast(100), "[]", "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"x\"}}}")) {
            file.writeText(damaged)
            assertTrue(refusal { Tokenizer.open(file) }.contains("export the model again"))
        }
        file.delete()
    }
}

/** Holds a tokenizer against an entry of awkward_ids.json. */
fun compareIds(kind: String, tokenizer: Tokenizer, entry: JsonObject) {
    val texts = texts()
    for (case in entry.get("cases").objects()) {
        val name = case.get("name").asString
        val text = texts.getValue(name)
        if (case.get("user").isJsonNull) {
            assertTrue(refusal { tokenizer.encode(text, fromTemplate = false) }.contains("cannot write"))
            continue
        }
        val user = case.get("user").tokens()
        assertEquals("$kind: $name, as a user's", user, tokenizer.encode(text, fromTemplate = false))
        assertEquals("$kind: $name, as a template's", case.get("template")?.tokens() ?: user, tokenizer.encode(text, fromTemplate = true))
        assertEquals("$kind: $name, decoded", case.get("decoded")?.asString ?: text, tokenizer.decode(user))
    }
}
