package org.pocketlm.core.search

import org.pocketlm.core.InputException
import java.io.Closeable
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.ln

/** A file of `pocketlm index` as the platform's SQLite reads it. */
interface IndexDatabase : Closeable {
    /** The file's name, for messages. */
    val name: String

    /** The rows of a query: numbers are Long, texts String, blobs ByteArray. Throws [InputException] for a damaged file. */
    fun rows(sql: String, vararg arguments: String): List<List<Any?>>

    /** A text split and folded as `fts3tokenize('unicode61')` does it. */
    fun split(text: String): List<String>
}

private const val SCHEMA = 2
private const val TITLE_WEIGHT = 2.0
private const val K1 = 1.2
private const val B = 0.75

/** What Android's SQLite lacks, since it has FTS4 but no FTS5: bm25 over the index. See runtimes/search_terms.py. */
class FactIndex private constructor(private val database: IndexDatabase) : Source, Closeable by database {
    override val name: String get() = database.name
    private val terms = meta("terms").toDouble()

    /** A passage's number, and how well it fits: FTS5's bm25, positive. */
    data class Ranked(val id: Long, val score: Double)

    override fun search(words: List<String>, limit: Int): List<Passage> = rank(words).take(limit).flatMap { passage(it.id) }

    private fun passage(id: Long): List<Passage> =
        database.rows("SELECT title, text, path FROM passages JOIN files ON files.id = passages.file WHERE passages.id = ?", "$id")
            .map { (title, text, source) -> Passage("$title", "$text", "$source") }

    /** All passages that hold any of the words, best first. */
    fun rank(words: List<String>): List<Ranked> {
        val scores = mutableMapOf<Long, Double>()
        for (word in words) {
            val terms = database.split(word).map(::stem)
            if (terms.isNotEmpty()) addScores(terms, scores)
        }
        return scores.map { (id, score) -> Ranked(id, score) }.sortedWith(compareByDescending<Ranked> { it.score }.thenBy { it.id })
    }

    /** In FTS5's order of operations, so that passages which are as good as each other are so here. */
    private fun addScores(phrase: List<ByteArray>, scores: MutableMap<Long, Double>) {
        val hexadecimal = phrase.joinToString("20", "22", "22") { term -> term.joinToString("") { "%02x".format(it) } }
        val rows = database.rows(
            "SELECT docid, matchinfo(passages_fts4, 'nlx') FROM passages_fts4 WHERE passages_fts4 MATCH CAST(X'$hexadecimal' AS TEXT)",
        )
        for ((id, blob) in rows) {
            val info = numbers(blob as ByteArray)
            val passages = info[0].toDouble()
            val length = (info[1] + info[2]).toDouble()
            val frequency = TITLE_WEIGHT * info[3] + info[6]
            val inverse = ln((passages - rows.size + 0.5) / (rows.size + 0.5)).let { if (it > 0) it else 1e-6 }
            val score = inverse * (frequency * (K1 + 1) / (frequency + K1 * (1 - B + B * length / (terms / passages))))
            scores[id as Long] = (scores[id] ?: 0.0) + score
        }
    }

    /** See `matchinfo(..., 'nlx')`: passages; terms of title and text; hits and two more of the title, the same of the text. */
    private fun numbers(blob: ByteArray): IntArray {
        if (blob.size != 9 * Int.SIZE_BYTES) throw InputException("$name: is damaged; make it again with: pocketlm index")
        val buffer = ByteBuffer.wrap(blob).order(ByteOrder.nativeOrder()).asIntBuffer()
        return IntArray(9).also { buffer.get(it) }
    }

    private fun meta(key: String): String = database.rows("SELECT value FROM meta WHERE key = ?", key).firstOrNull()?.first() as? String
        ?: throw InputException("$name: is no index, or an unfinished one; make it again with: pocketlm index")

    companion object {
        /** Takes over [database]; throws [InputException] if it is no index, or one that this app cannot read. */
        fun open(database: IndexDatabase): FactIndex {
            try {
                val schema = database.rows("SELECT value FROM meta WHERE key = 'schema'").firstOrNull()?.first().toString().toIntOrNull()
                if (schema != SCHEMA) {
                    val advice = if (schema != null && schema > SCHEMA) "update the app" else "make the index again with: pocketlm index"
                    throw InputException("${database.name}: index schema $schema, this app reads $SCHEMA; $advice")
                }
                return FactIndex(database)
            } catch (error: InputException) {
                database.close()
                throw error
            }
        }
    }
}
