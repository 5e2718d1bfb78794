package org.pocketlm.core.tokenizer

import com.google.gson.JsonObject
import org.pocketlm.core.UnexpectedJson
import org.pocketlm.core.int
import org.pocketlm.core.text
import org.pocketlm.core.textOrNull
import java.io.ByteArrayOutputStream
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException

/** Turns tokens into texts that are joined at the end. */
internal typealias Decode = (List<String>) -> List<String>

private val BYTE_TOKEN = Regex("<0x[0-9A-Fa-f]{2}>")

internal fun isByteToken(token: String) = BYTE_TOKEN.matches(token)

internal fun decoder(step: JsonObject?): Decode =
    when (step?.text("type")) {
        null -> { tokens -> listOf(tokens.joinToString(" ")) }
        "Sequence" -> steps(step, "decoders").map(::decoder).let { all -> { tokens -> all.fold(tokens) { result, one -> one(result) } } }
        "ByteLevel" -> ::decodeByteLevel
        "ByteFallback" -> ::decodeByteFallback
        "Fuse" -> { tokens -> listOf(tokens.joinToString("")) }
        "Replace" -> replace(step).let { change -> { tokens -> tokens.map(change) } }
        "Strip" -> strip(step.text("content").single(), step.int("start"), step.int("stop"))
        "Metaspace" -> metaspace(step)
        else -> throw UnexpectedJson("the decoder '${step.textOrNull("type")}' is not known to this app")
    }

private fun decodeByteLevel(tokens: List<String>): List<String> {
    val bytes = ByteArrayOutputStream()
    tokens.forEach { ByteLevel.decode(it, bytes) }
    return listOf(bytes.toString("UTF-8"))
}

/** A run of byte tokens is the text that they spell, or if they spell none, U+FFFD for each. */
private fun decodeByteFallback(tokens: List<String>): List<String> {
    val result = mutableListOf<String>()
    val run = mutableListOf<Byte>()
    fun flush() {
        if (run.isNotEmpty()) result += utf8(run.toByteArray())?.let(::listOf) ?: List(run.size) { "\ufffd" }
        run.clear()
    }
    for (token in tokens) {
        if (isByteToken(token)) {
            run += token.substring(3, 5).toInt(16).toByte()
        } else {
            flush()
            result += token
        }
    }
    flush()
    return result
}

private fun utf8(bytes: ByteArray): String? =
    try {
        Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString()
    } catch (_: CharacterCodingException) {
        null
    }

private fun strip(content: Char, start: Int, stop: Int): Decode = { tokens ->
    tokens.map { token ->
        val front = token.takeWhile { it == content }.length.coerceAtMost(start)
        val rest = token.substring(front)
        rest.dropLast(rest.takeLastWhile { it == content }.length.coerceAtMost(stop))
    }
}

/** The mark is a space; in the first token it is nothing, because encoding put it there. */
private fun metaspace(step: JsonObject): Decode {
    val mark = step.text("replacement")
    val first = if (step.textOrNull("prepend_scheme") == "never") " " else ""
    return { tokens -> tokens.mapIndexed { i, token -> token.replace(mark, if (i == 0) first else " ") } }
}
