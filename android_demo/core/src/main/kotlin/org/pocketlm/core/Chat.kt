package org.pocketlm.core

import org.pocketlm.core.search.Passage
import org.pocketlm.core.search.Search
import org.pocketlm.core.search.cutTo
import org.pocketlm.core.search.explain
import org.pocketlm.core.search.grounded
import org.pocketlm.core.tokenizer.Tokenizer

/** The part of a conversation that does not change: how messages become a prompt that fits. */
class Chat(private val tokenizer: Tokenizer, private val turns: ChatTurns, private val context: Int, private val maxNewTokens: Int) {
    /**
     * A prompt's tokens and the messages that it holds, the last as the user wrote it; [passages] that a search found and the
     * model is shown, and [notes] that the user must know of the search.
     */
    data class Prompt(
        val tokens: List<Int>,
        val messages: List<Message>,
        val passages: List<Passage> = emptyList(),
        val notes: List<String> = emptyList(),
    )

    /**
     * The prompt for an answer to the last message, with what [search] finds for it in the room that the conversation leaves.
     * Throws [InputException] as [fit] does; a source that fails is only noted.
     */
    fun prepare(messages: List<Message>, search: Search?): Prompt {
        if (search == null) return fit(messages)
        val found = search.lookUp(messages.filter { it.role == "user" }.map { it.content })
        val plain = fit(messages, spare = if (found.passages.isEmpty()) 0 else context / 4)
        var used = cutTo(found.passages, room - plain.tokens.size - count(grounded("", emptyList())), ::count)
        var tokens = plain.tokens
        while (used.isNotEmpty()) {
            val question = Message("user", grounded(plain.messages.last().content, used))
            val withPassages = encode(plain.messages.dropLast(1) + question)
            if (withPassages.size <= room) {
                tokens = withPassages
                break
            }
            used = used.dropLast(1) // tokens of parts do not always add up
        }
        return Prompt(tokens, plain.messages, used, explain(found, used))
    }

    private fun count(text: String) = tokenizer.encode(text, fromTemplate = false).size

    /** Tokens that a prompt may take: a quarter of the context is kept for the answer, or less if less was asked. */
    private val room = context - minOf(maxNewTokens, context / 4)

    fun encode(messages: List<Message>): List<Int> =
        tokenizer.encode(turns.segments(messages), turns.control ?: tokenizer.specialTokens)

    /**
     * The prompt without the oldest turns where all would not fit: a quarter of the context is kept for the answer, and [spare]
     * tokens besides; once turns must go, half of it, so that the turns that follow find their beginning in the cache. See
     * runtimes/chat.py. Throws [InputException] if the last message alone is too long.
     */
    fun fit(messages: List<Message>, spare: Int = 0): Prompt {
        var room = room - spare
        var kept = messages
        while (true) {
            val tokens = encode(kept)
            if (tokens.size <= room) return Prompt(tokens, kept)
            val first = if (kept[0].role == "system") 1 else 0
            if (kept.size - first >= 3) {
                kept = kept.take(first) + kept.drop(first + 2)
                room = minOf(room, context / 2)
            } else if (tokens.size <= context) {
                return Prompt(tokens, kept)
            } else {
                throw InputException("the message takes ${tokens.size} tokens and the context holds $context; shorten it")
            }
        }
    }
}
