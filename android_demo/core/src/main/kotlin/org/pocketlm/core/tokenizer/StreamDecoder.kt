package org.pocketlm.core.tokenizer

private const val INCOMPLETE = "\ufffd"
private const val LONGEST_CHARACTER = 4

/**
 * Decodes tokens as they come; the pieces joined equal `decode` of all tokens.
 *
 * A piece is held back until no later token can change it: while a character's bytes are incomplete, and through a run
 * of byte tokens, which the decoder judges as a whole.
 */
class StreamDecoder(private val tokenizer: Tokenizer) {
    private var anchor = listOf<Int>() // the last token shown: decoders treat the first of a text differently
    private val held = mutableListOf<Int>()

    /** The text that this token completes, perhaps none. */
    fun add(token: Int): String {
        if (!tokenizer.hasText(token)) return ""
        held += token
        if (tokenizer.isByte(token)) return ""
        if (!tokenizer.decode(listOf(token)).endsWith(INCOMPLETE)) return flush()
        // The token ends within a character, or completes one that others began.
        return if (held.size > LONGEST_CHARACTER || tokenizer.decode(held).endsWith(INCOMPLETE)) "" else flush()
    }

    /** The text still held back; incomplete bytes show as U+FFFD. */
    fun finish(): String = if (held.isEmpty()) "" else flush()

    private fun flush(): String {
        val shown = if (anchor.isEmpty()) "" else tokenizer.decode(anchor)
        val text = tokenizer.decode(anchor + held)
        anchor = held.takeLast(1)
        held.clear()
        return text.drop(shown.length)
    }
}
