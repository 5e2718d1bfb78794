package org.pocketlm.core.tokenizer

import org.pocketlm.core.InputException
import org.pocketlm.core.Segment
import java.io.File
import java.io.Reader

/**
 * Text to token ids and back, as tokenizer.json describes it: byte-level BPE, and BPE in SentencePiece's manner.
 *
 * Every step that the file names and this app does not know is refused when the file is read.
 */
class Tokenizer internal constructor(
    private val model: Bpe,
    tokens: List<AddedToken>,
    private val normalize: Normalize,
    private val split: Split,
    private val join: Decode,
) {
    private val raw = AddedTokens(tokens.filterNot { it.normalized })
    private val normalized = AddedTokens(tokens.filter { it.normalized }.map { it.copy(content = normalize(it.content)) })
    private val added: Map<Int, AddedToken> = tokens.associateBy { it.id }
    private val specialIds = tokens.filter { it.special }.map { it.id }.toSet()
    private val ids = tokens.associate { it.content to it.id }

    /** The strings that stand for control tokens. */
    val specialTokens: Set<String> = tokens.filter { it.special }.map { it.content }.toSet()

    /** Token ids of one text; nothing is added in front or behind. See the other `encode`. */
    fun encode(text: String, fromTemplate: Boolean): List<Int> = encode(listOf(Segment(text, fromTemplate)), specialTokens)

    /**
     * Token ids of segments that make one text: it is never cut where a segment begins.
     *
     * Tokens in [control] count only in segments from the template and are plain text in the others; other added tokens
     * count everywhere. Throws [InputException] if a text is not valid Unicode, or the vocabulary spells a control token.
     */
    fun encode(segments: List<Segment>, control: Set<String>): List<Int> {
        val text = segments.joinToString("") { it.text }
        checkUnicode(text)
        val written = templateRanges(segments)
        val plainIds = control.mapNotNull { token -> ids[token]?.let { it to token } }.toMap()
        val result = mutableListOf<Int>()
        val found = raw.find(text) { token, range ->
            token.content !in control || written.any { range.first >= it.first && range.last <= it.last }
        }
        forEachPart(text, found, result) { part, first -> encodeNormalized(normalize(part), first, plainIds, result) }
        return result
    }

    private fun templateRanges(segments: List<Segment>): List<IntRange> {
        var end = 0
        return segments.map { segment -> (end until end + segment.text.length).also { end = it.last + 1 } }
            .zip(segments).filter { (_, segment) -> segment.fromTemplate }.map { it.first }
    }

    private fun encodeNormalized(text: String, first: Boolean, plainIds: Map<Int, String>, into: MutableList<Int>) {
        val found = normalized.find(text) { _, _ -> true }
        forEachPart(text, found, into) { part, atStart ->
            for (word in split(Part(part, first && atStart))) {
                val start = into.size
                model.encode(word.text, into)
                into.subList(start, into.size).firstOrNull { it in plainIds }?.let {
                    throw InputException("this tokenizer cannot write '${plainIds[it]}' as plain text; take it out of the message")
                }
            }
        }
    }

    private fun forEachPart(text: String, found: List<Found>, into: MutableList<Int>, encode: (String, Boolean) -> Unit) {
        var from = 0
        for (token in found) {
            if (token.range.first > from) encode(text.substring(from, token.range.first), from == 0)
            into += token.token.id
            from = token.range.last + 1
        }
        if (from < text.length) encode(text.substring(from), from == 0)
    }

    /** The text of tokens; control tokens have none. */
    fun decode(tokens: List<Int>): String = join(tokens.filterNot { it in specialIds }.mapNotNull(::text)).joinToString("")

    private fun text(token: Int): String? = added[token]?.content ?: model.text(token)

    /** The id of a token given as a string, or null. */
    fun id(token: String): Int? = ids[token] ?: model.id(token, -1).takeIf { it >= 0 }

    /** Whether a token can show in decoded text: it exists and is no control token. */
    fun hasText(token: Int) = token !in specialIds && text(token) != null

    /** Whether a token is one raw byte. */
    fun isByte(token: Int) = text(token)?.let(::isByteToken) ?: false

    companion object {
        /** Reads tokenizer.json; throws [InputException] if it cannot be used. */
        fun open(file: File): Tokenizer = TokenizerJson.read(file)

        internal fun read(reader: Reader): Tokenizer = TokenizerJson.read(reader)
    }
}

private fun checkUnicode(text: String) {
    var i = 0
    while (i < text.length) {
        val code = text.codePointAt(i)
        if (code in 0xd800..0xdfff) throw InputException("the text is not valid Unicode")
        i += Character.charCount(code)
    }
}
