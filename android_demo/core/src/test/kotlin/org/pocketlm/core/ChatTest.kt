package org.pocketlm.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.pocketlm.core.tokenizer.Tokenizer
import java.io.File
import java.util.GregorianCalendar

class ChatTest {
    @Test
    fun `prompts are what the templates write`() {
        for (entry in goldenJson("chat_turns.json").objects()) {
            val turns = ChatTurns.parse(entry.get("turns").asJsonObject)
            for (case in entry.get("conversations").objects()) {
                val (year, month, day) = case.get("date").asString.split("-").map { it.toInt() }
                val segments = turns.segments(messages(case.get("messages")), GregorianCalendar(year, month - 1, day))
                assertEquals(entry.get("name").asString, case.get("text").asString, segments.joinToString("") { it.text })
            }
        }
    }

    @Test
    fun `ids of conversations are those of Python`() {
        for (entry in goldenJson("chat_ids.json").objects()) {
            val chat = chat(entry.get("tokenizer").asString, ChatTurns.parse(entry.get("turns").asJsonObject), 10_000)
            for (case in entry.get("cases").objects()) {
                assertEquals(case.toString(), case.get("ids").tokens(), chat.encode(messages(case.get("messages"))))
            }
        }
    }

    private fun chat(tokenizer: String, turns: ChatTurns, context: Int) = Chat(Tokenizer.open(File(GOLDEN, tokenizer)), turns, context, 64)

    private val turns = ChatTurns.open(File(GOLDEN, "bundle/good/chat_turns.json"))

    @Test
    fun `conversations that no template covers are refused`() {
        val say = { role: String, content: String -> Message(role, content) }
        assertTrue(refusal { turns.segments(listOf(say("assistant", "a"))) }.contains("assistant cannot follow start"))
        assertTrue(refusal { turns.segments(listOf(say("user", "a"), say("user", "b"))) }.contains("user cannot follow user"))
        assertTrue(refusal { turns.segments(listOf(say("user", " \n\u2003"))) }.contains("is empty; leave it out"))
        val gemma = goldenJson("chat_turns.json").objects().first { it.get("name").asString == "Gemma 2" }
        val without = ChatTurns.parse(gemma.get("turns").asJsonObject)
        assertTrue(refusal { without.segments(listOf(say("system", "a"), say("user", "b"))) }.contains("takes no system message: "))
    }

    @Test
    fun `the oldest turns go when the context is full, the system message stays`() {
        val chat = chat("tokenizers/smollm2.json", turns, 256)
        val talk = listOf(Message("system", "Be brief.")) +
            (1..9).flatMap { listOf(Message("user", "question $it"), Message("assistant", "answer $it")) } + Message("user", "last")
        val (tokens, kept) = chat.fit(talk)
        assertTrue(tokens.size <= 128)
        assertEquals(talk.first(), kept.first())
        assertEquals(talk.takeLast(kept.size - 1), kept.drop(1))
        assertTrue(kept.size < talk.size)
        assertTrue(refusal { chat.fit(listOf(Message("user", "word ".repeat(400)))) }.contains("the context holds 256"))
    }
}
