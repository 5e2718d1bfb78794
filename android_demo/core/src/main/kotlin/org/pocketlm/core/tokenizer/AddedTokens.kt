package org.pocketlm.core.tokenizer

/** Where a token was found in a text. */
internal class Found(val range: IntRange, val token: AddedToken)

/** Finds added tokens, the longest at the leftmost place, as the library's automaton does. */
internal class AddedTokens(tokens: List<AddedToken>) {
    private val byFirst: Map<Char, List<AddedToken>> =
        tokens.filter { it.content.isNotEmpty() }.sortedByDescending { it.content.length }.groupBy { it.content[0] }

    /** Tokens in order; [counts] says whether a token counts where it stands. */
    fun find(text: String, counts: (AddedToken, IntRange) -> Boolean): List<Found> {
        val result = mutableListOf<Found>()
        var from = 0
        var i = 0
        while (i < text.length) {
            val token = byFirst[text[i]]?.firstOrNull { matches(text, i, it) && counts(it, i until i + it.content.length) }
            if (token == null) {
                i++
                continue
            }
            val range = widened(text, token, from, i)
            result += Found(range, token)
            from = range.last + 1
            i = from
        }
        return result
    }

    private fun matches(text: String, at: Int, token: AddedToken): Boolean {
        if (!text.startsWith(token.content, at)) return false
        if (!token.singleWord) return true
        val end = at + token.content.length
        return !(at > 0 && isWord(text[at - 1])) && !(end < text.length && isWord(text[end]))
    }

    private fun isWord(character: Char) = character.isLetterOrDigit() || character == '_'

    /** With the white space around it that the token takes along. */
    private fun widened(text: String, token: AddedToken, from: Int, at: Int): IntRange {
        var start = at
        var end = at + token.content.length
        if (token.leftStrip) while (start > from && text[start - 1].isWhitespace()) start--
        if (token.rightStrip) while (end < text.length && text[end].isWhitespace()) end++
        return start until end
    }
}
