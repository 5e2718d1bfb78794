package org.pocketlm.core.tokenizer

import com.google.gson.JsonElement
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import com.google.gson.stream.JsonReader
import com.google.gson.stream.JsonToken
import org.pocketlm.core.InputException
import org.pocketlm.core.UnexpectedJson
import org.pocketlm.core.array
import org.pocketlm.core.asObject
import org.pocketlm.core.flag
import org.pocketlm.core.int
import org.pocketlm.core.oneLine
import org.pocketlm.core.text
import org.pocketlm.core.textOrNull
import java.io.File
import java.io.IOException
import java.io.Reader

/** A token that is found in text before the model sees it. */
data class AddedToken(
    val id: Int,
    val content: String,
    val special: Boolean,
    val normalized: Boolean,
    val leftStrip: Boolean,
    val rightStrip: Boolean,
    val singleWord: Boolean,
)

/** Reads tokenizer.json of Hugging Face's tokenizers as a stream: vocabularies are too large for a tree on a phone. */
internal class TokenizerJson private constructor() {
    private var addedTokens = listOf<AddedToken>()
    private var normalizer: JsonObject? = null
    private var preTokenizer: JsonObject? = null
    private var decoder: JsonObject? = null
    private var model: Bpe? = null

    private fun read(reader: JsonReader): Tokenizer {
        reader.beginObject()
        while (reader.hasNext()) {
            when (reader.nextName()) {
                "added_tokens" -> addedTokens = tree(reader).asJsonArray.map { addedToken(it.asObject("added token")) }
                "normalizer" -> normalizer = optional(tree(reader))
                "pre_tokenizer" -> preTokenizer = optional(tree(reader))
                "decoder" -> decoder = optional(tree(reader))
                "model" -> model = BpeReader(reader).read()
                else -> reader.skipValue() // truncation and padding are not for a chat, nor is the post-processor
            }
        }
        reader.endObject()
        return Tokenizer(
            model ?: throw UnexpectedJson("it has no model"),
            addedTokens,
            normalizer(normalizer),
            preTokenizer(preTokenizer),
            decoder(decoder),
        )
    }

    private fun tree(reader: JsonReader): JsonElement = JsonParser.parseReader(reader)

    private fun optional(element: JsonElement): JsonObject? = if (element.isJsonNull) null else element.asObject("a step")

    private fun addedToken(entry: JsonObject) = AddedToken(
        entry.int("id"), entry.text("content"), entry.flag("special"), entry.flag("normalized"),
        entry.flag("lstrip"), entry.flag("rstrip"), entry.flag("single_word"),
    )

    companion object {
        fun read(file: File): Tokenizer =
            try {
                file.reader().buffered().use(::read)
            } catch (error: IOException) {
                throw InputException("$file cannot be read (${oneLine(error)}); export the model again", error)
            } catch (error: RuntimeException) { // Gson's, and those of the values
                throw InputException("$file cannot be read (${oneLine(error)}); export the model again", error)
            }

        fun read(reader: Reader): Tokenizer = TokenizerJson().read(JsonReader(reader))
    }
}

/** The part "model", in which the vocabulary comes before the merges. */
private class BpeReader(private val reader: JsonReader) {
    private val vocabulary = HashMap<String, Int>()
    private var unknown: String? = null
    private var fuseUnknown = false
    private var byteFallback = false
    private var ignoreMerges = false
    private val merges = mutableListOf<Pair<String, String>>()

    fun read(): Bpe {
        reader.beginObject()
        while (reader.hasNext()) readEntry(reader.nextName())
        reader.endObject()
        return Bpe(vocabulary, merges, unknown, fuseUnknown, byteFallback, ignoreMerges)
    }

    private fun readEntry(name: String) {
        when (name) {
            "type" -> check(reader.nextString(), "model", "BPE")
            "vocab" -> readVocabulary()
            "merges" -> readMerges()
            "unk_token" -> unknown = textOrNull()
            "fuse_unk" -> fuseUnknown = reader.nextBoolean()
            "byte_fallback" -> byteFallback = reader.nextBoolean()
            "ignore_merges" -> ignoreMerges = reader.nextBoolean()
            "continuing_subword_prefix", "end_of_word_suffix" -> check(textOrNull().orEmpty(), name, "")
            else -> reader.skipValue() // dropout is for training
        }
    }

    private fun check(found: String, what: String, expected: String) {
        if (found != expected) throw UnexpectedJson("the $what '$found' is not known to this app")
    }

    private fun textOrNull(): String? =
        if (reader.peek() == JsonToken.NULL) null.also { reader.nextNull() } else reader.nextString()

    private fun readVocabulary() {
        reader.beginObject()
        while (reader.hasNext()) vocabulary[reader.nextName()] = reader.nextInt()
        reader.endObject()
    }

    /** Each merge is a list of two, or in older files one text with a space between. */
    private fun readMerges() {
        reader.beginArray()
        while (reader.hasNext()) {
            if (reader.peek() == JsonToken.BEGIN_ARRAY) {
                reader.beginArray()
                merges += reader.nextString() to reader.nextString()
                reader.endArray()
            } else {
                val merge = reader.nextString()
                merges += merge.substringBefore(' ') to merge.substringAfter(' ')
            }
        }
        reader.endArray()
    }
}

/** "pattern" of a step: {"String": text} or {"Regex": expression}. */
internal fun pattern(step: JsonObject): java.util.regex.Pattern {
    val pattern = step.get("pattern").asObject("pattern")
    return pattern.textOrNull("String")?.let { java.util.regex.Pattern.compile(java.util.regex.Pattern.quote(it)) }
        ?: unicodePattern(pattern.text("Regex"))
}

internal fun steps(step: JsonObject, key: String): List<JsonObject> = step.array(key).map { it.asObject(key) }
