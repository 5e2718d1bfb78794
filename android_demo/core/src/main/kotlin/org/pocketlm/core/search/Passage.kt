package org.pocketlm.core.search

import org.pocketlm.core.InputException

/** A piece of text that a source found: its heading, plain text, and where it is from, for people. */
data class Passage(val title: String, val text: String, val source: String)

/** Something that finds passages. */
interface Source {
    /** What the user is told of it. */
    val name: String

    /** Up to [limit] passages, best first; throws [InputException] with one line for anything that goes wrong. */
    fun search(words: List<String>, limit: Int): List<Passage>
}

/** What a search gave: the words that were looked up, passages, and a line for each source that failed. */
data class Found(val words: List<String>, val passages: List<Passage>, val problems: List<String>)

/** Where to look things up, and how many passages the model is shown: small models answer best from one. */
class Search(private val sources: List<Source>, private val limit: Int = 1) {
    /** Searches for what the last of these questions asks, or the last two if it has only one keyword ("And its height?"). */
    fun lookUp(questions: List<String>): Found {
        var words = keywords(questions.last())
        if (words.size < 2 && questions.size > 1) words = (words + keywords(questions[questions.size - 2])).distinct()
        if (words.isEmpty()) return Found(words, emptyList(), emptyList())
        val problems = mutableListOf<String>()
        val answers = sources.map { source ->
            try {
                source.search(words, limit)
            } catch (error: InputException) {
                problems += "${source.name}: ${error.message}"
                emptyList()
            }
        }
        return Found(words, byTurns(answers).distinctBy { it.text }.take(limit), problems)
    }

    private fun byTurns(answers: List<List<Passage>>): List<Passage> =
        (0 until (answers.maxOfOrNull { it.size } ?: 0)).flatMap { turn -> answers.mapNotNull { it.getOrNull(turn) } }
}
