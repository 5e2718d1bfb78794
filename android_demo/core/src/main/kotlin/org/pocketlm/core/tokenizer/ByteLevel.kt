package org.pocketlm.core.tokenizer

import java.io.ByteArrayOutputStream

/** GPT-2's alphabet: a printable character for each byte. */
internal object ByteLevel {
    private val characters: CharArray = run {
        val printable = (('!'..'~') + ('\u00a1'..'\u00ac') + ('\u00ae'..'\u00ff')).map { it.code }.toSet()
        var next = 256
        CharArray(256) { byte -> if (byte in printable) byte.toChar() else (next++).toChar() }
    }
    private val bytes: Map<Char, Int> = characters.indices.associateBy { characters[it] }

    fun encode(text: String): String {
        val utf8 = text.toByteArray()
        return String(CharArray(utf8.size) { characters[utf8[it].toInt() and 0xff] })
    }

    /** The bytes that a token stands for: its own UTF-8 if it is not written in this alphabet. */
    fun decode(token: String, into: ByteArrayOutputStream) {
        if (token.all { it in bytes }) token.forEach { into.write(bytes.getValue(it)) } else into.write(token.toByteArray())
    }
}
