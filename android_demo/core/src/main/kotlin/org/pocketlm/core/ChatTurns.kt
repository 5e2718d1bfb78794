package org.pocketlm.core

import com.google.gson.JsonObject
import java.io.File
import java.util.Calendar

private const val SCHEMA = 1
private const val DATE_MARK = "\ue000"
private val MONTHS = listOf("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
private val DAYS = listOf("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")

// What Python's str.strip() removes, and \s in its regular expressions matches.
internal val WHITE_SPACE = ("\t\n\u000b\u000c\r\u001c\u001d\u001e\u001f \u0085\u00a0\u1680" + ('\u2000'..'\u200a').joinToString("") + "\u2028\u2029\u202f\u205f\u3000").toSet()

/** One message of a conversation: role "system", "user" or "assistant". */
data class Message(val role: String, val content: String)

/** A part of a prompt; control tokens count only in what the template wrote. */
data class Segment(val text: String, val fromTemplate: Boolean)

/** A chat template as literal pieces: chat_turns.json, which runtimes/chat_turns.py describes. */
class ChatTurns private constructor(
    private val between: Map<String, Piece>,
    private val systemReason: String?,
    private val cut: Cut?,
    private val dates: List<String>,
    val control: Set<String>?,
    val defaultSystem: String?,
) {
    private data class Piece(val trimBefore: String, val text: String, val trimAfter: String)

    private data class Cut(val behind: String, val trimLeft: String)

    val takesSystem get() = "start system" in between

    /** The prompt's parts; throws [InputException] for a conversation that is not [system] user (assistant user)*. */
    fun segments(messages: List<Message>, now: Calendar = Calendar.getInstance()): List<Segment> {
        val parts = mutableListOf<Segment>()
        var previous = "start"
        var content = ""
        for ((role, following) in messages.map { it.role to withoutCut(it) } + ("generate" to "")) {
            val piece = piece(previous, role)
            if (previous != "start") parts += Segment(content.trimEnd { it in piece.trimBefore }, fromTemplate = false)
            parts += Segment(withDates(piece.text, now), fromTemplate = true)
            previous = role
            content = following.trimStart { it in piece.trimAfter }
        }
        return parts
    }

    private fun withoutCut(message: Message): String {
        val content = message.content
        if (content.all { it in WHITE_SPACE }) throw InputException("a message of the ${message.role} is empty; leave it out")
        if (message.role != "assistant" || cut == null || cut.behind !in content) return content
        return content.substringAfterLast(cut.behind).trimStart { it in cut.trimLeft }
    }

    private fun piece(previous: String, role: String): Piece =
        between["$previous $role"] ?: throw InputException(
            if (previous == "start" && role == "system") {
                "this model takes no system message: $systemReason"
            } else {
                "$role cannot follow $previous: a conversation is [system] user (assistant user)*"
            },
        )

    private fun withDates(text: String, now: Calendar) =
        dates.fold(text) { result, pattern -> result.replace(DATE_MARK + pattern + DATE_MARK, strftime(pattern, now)) }

    companion object {
        fun open(file: File): ChatTurns = readJson(file, ::parse)

        fun parse(content: JsonObject): ChatTurns {
            if (content.int("schema") != SCHEMA) throw UnexpectedJson("schema ${content.int("schema")} is not known")
            return ChatTurns(
                content.obj("between").entrySet().associate { (pair, piece) -> pair to piece(piece.asObject(pair)) },
                content.textOrNull("system_reason"),
                content.get("cut")?.takeIf { it.isJsonObject }?.asObject("cut")?.let { Cut(it.text("behind"), it.text("trim_left")) },
                content.array("dates").map { it.asString },
                content.get("control")?.asArray("control")?.map { it.asString }?.toSet(),
                content.textOrNull("default_system"),
            )
        }

        private fun piece(content: JsonObject) = Piece(content.text("trim_before"), content.text("text"), content.text("trim_after"))
    }
}

/** The patterns that occur in templates, with English names. */
private fun strftime(pattern: String, now: Calendar): String {
    val month = MONTHS[now.get(Calendar.MONTH)]
    val day = DAYS[now.get(Calendar.DAY_OF_WEEK) - 1]
    val values = mapOf(
        "%d" to "%02d".format(now.get(Calendar.DAY_OF_MONTH)),
        "%m" to "%02d".format(now.get(Calendar.MONTH) + 1),
        "%Y" to "%04d".format(now.get(Calendar.YEAR)),
        "%y" to "%02d".format(now.get(Calendar.YEAR) % 100),
        "%B" to month, "%b" to month.take(3), "%A" to day, "%a" to day.take(3),
    )
    return Regex("%.").replace(pattern) { values[it.value] ?: throw UnexpectedJson("date pattern ${it.value} is not known") }
}
