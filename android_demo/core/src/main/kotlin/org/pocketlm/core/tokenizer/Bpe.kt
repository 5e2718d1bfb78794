package org.pocketlm.core.tokenizer

import org.pocketlm.core.UnexpectedJson
import java.util.PriorityQueue

/** Byte-pair encoding (Sennrich et al. 2016) as Hugging Face's tokenizers does it. */
internal class Bpe(
    private val vocabulary: Map<String, Int>,
    merges: List<Pair<String, String>>,
    unknown: String?,
    private val fuseUnknown: Boolean,
    byteFallback: Boolean,
    private val ignoreMerges: Boolean,
) {
    private val texts: Array<String?> = arrayOfNulls<String>((vocabulary.values.maxOrNull() ?: -1) + 1)
    private val unknownId = unknown?.let { vocabulary[it] }
    private val byteIds = if (byteFallback) IntArray(256) { vocabulary["<0x%02X>".format(it)] ?: -1 } else null
    private val table = MergeTable(merges.size)

    init {
        vocabulary.forEach { (text, id) -> texts[id] = text }
        merges.forEachIndexed { rank, (left, right) -> table.put(id(left), id(right), rank, id(left + right)) }
    }

    private fun id(text: String) = vocabulary[text] ?: throw UnexpectedJson("a merge names '$text', which is not in the vocabulary")

    fun id(text: String, absent: Int) = vocabulary[text] ?: absent

    fun text(id: Int): String? = texts.getOrNull(id)

    fun encode(word: String, into: MutableList<Int>) {
        if (word.isEmpty()) return
        val whole = if (ignoreMerges) vocabulary[word] else null
        if (whole != null) into += whole else merge(symbols(word), into)
    }

    /** Ids of the characters; bytes, the unknown token or nothing for those that are not in the vocabulary. */
    private fun symbols(word: String): IntArray {
        val ids = IntArray(word.length * 4)
        var count = 0
        var unknownBefore = false
        var i = 0
        while (i < word.length) {
            val next = word.offsetByCodePoints(i, 1)
            val character = word.substring(i, next)
            val id = vocabulary[character]
            val bytes = if (id == null) fallback(character) else null
            val isUnknown = id == null && bytes == null
            when {
                id != null -> ids[count++] = id
                bytes != null -> bytes.forEach { ids[count++] = it }
                unknownId != null && !(fuseUnknown && unknownBefore) -> ids[count++] = unknownId
            }
            unknownBefore = isUnknown
            i = next
        }
        return ids.copyOf(count)
    }

    private fun fallback(character: String): IntArray? {
        val ids = byteIds ?: return null
        val bytes = character.toByteArray()
        val found = IntArray(bytes.size) { ids[bytes[it].toInt() and 0xff] }
        return if (found.any { it < 0 }) null else found
    }

    private class Merge(val rank: Int, val position: Int, val left: Int, val right: Int, val id: Int)

    /** Joins neighbours, the lowest rank first and the leftmost among equals, until no pair is left to join. */
    private fun merge(ids: IntArray, into: MutableList<Int>) {
        val next = IntArray(ids.size) { it + 1 }
        val previous = IntArray(ids.size) { it - 1 }
        val queue = PriorityQueue<Merge>(11) { a, b -> if (a.rank != b.rank) a.rank.compareTo(b.rank) else a.position.compareTo(b.position) }
        fun consider(position: Int) {
            val right = if (position >= 0) next[position] else ids.size
            if (right >= ids.size) return
            val found = table.find(ids[position], ids[right])
            if (found >= 0) queue += Merge(table.rank(found), position, ids[position], ids[right], table.id(found))
        }
        for (position in ids.indices) consider(position)
        while (true) {
            val merge = queue.poll() ?: break
            val position = merge.position
            val right = next[position]
            // What was queued may have been overtaken by another merge.
            if (ids[position] != merge.left || right >= ids.size || ids[right] != merge.right) continue
            ids[position] = merge.id
            ids[right] = REMOVED
            next[position] = next[right]
            if (next[right] < ids.size) previous[next[right]] = position
            consider(previous[position])
            consider(position)
        }
        ids.filterTo(into) { it != REMOVED }
    }

    private companion object {
        const val REMOVED = -1
    }
}

/** (left id, right id) -> rank and id of the pair: a hash table without objects, for the 280,000 merges of a Llama 3. */
private class MergeTable(count: Int) {
    private val mask = Integer.highestOneBit(maxOf(count, 8)) * 4 - 1
    private val keys = LongArray(mask + 1) { -1 }
    private val ranks = IntArray(mask + 1)
    private val ids = IntArray(mask + 1)

    private fun slot(key: Long): Int {
        var slot = ((key * -0x61c8864680b583ebL) ushr 33).toInt() and mask
        while (keys[slot] != -1L && keys[slot] != key) slot = (slot + 1) and mask
        return slot
    }

    fun put(left: Int, right: Int, rank: Int, id: Int) {
        val slot = slot(key(left, right))
        keys[slot] = key(left, right) // a pair that is listed twice has its later rank, as in the library
        ranks[slot] = rank
        ids[slot] = id
    }

    fun find(left: Int, right: Int): Int = slot(key(left, right)).let { if (keys[it] == -1L) -1 else it }

    fun rank(slot: Int) = ranks[slot]

    fun id(slot: Int) = ids[slot]

    private fun key(left: Int, right: Int) = (left.toLong() shl 32) or right.toLong()
}
