package org.pocketlm.core.search

/**
 * Porter's algorithm (1980) as SQLite's FTS5 has it, for a word that FTS5's tokenizer split and folded already.
 *
 * It works on the bytes of UTF-8, each a letter; those outside of ASCII are consonants, and a stem may end within a
 * character. Words of fewer than 3 bytes, or of more than 64, are left as they are.
 */
fun stem(word: String): ByteArray {
    val bytes = word.toByteArray()
    if (bytes.size < 3 || bytes.size > LONGEST) return bytes
    return Stemmer(StringBuilder(String(bytes, Charsets.ISO_8859_1))).run().toByteArray(Charsets.ISO_8859_1)
}

private const val LONGEST = 64

/** What stands at a word's end, and what it becomes; the first that fits is taken. */
private class Rules(vararg pairs: Pair<String, String>) {
    private val pairs = pairs.toList()

    fun find(word: CharSequence) = pairs.firstOrNull { (end, _) -> word.length > end.length && word.endsWith(end) }
}

private val REPAIR = Rules("at" to "ate", "bl" to "ble", "iz" to "ize")
private val STEP_2 = Rules(
    "ational" to "ate", "tional" to "tion", "enci" to "ence", "anci" to "ance", "izer" to "ize", "logi" to "log", "bli" to "ble",
    "alli" to "al", "entli" to "ent", "eli" to "e", "ousli" to "ous", "ization" to "ize", "ation" to "ate", "ator" to "ate",
    "alism" to "al", "iveness" to "ive", "fulness" to "ful", "ousness" to "ous", "aliti" to "al", "iviti" to "ive",
    "biliti" to "ble",
)
private val STEP_3 = Rules("ical" to "ic", "ness" to "", "icate" to "ic", "iciti" to "ic", "ful" to "", "ative" to "", "alize" to "al")
private val STEP_4 = Rules(
    *listOf("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate", "iti", "ous", "ive", "ize")
        .map { it to "" }.toTypedArray(),
)

private class Stemmer(private val word: StringBuilder) {
    fun run(): String {
        plural()
        if (pastOrGerund()) repair()
        if (word.endsWith("y") && hasVowel(word.length - 1)) word.setCharAt(word.length - 1, 'i')
        replace(STEP_2) { _, end -> measure(end) > 0 }
        replace(STEP_3) { _, end -> measure(end) > 0 }
        replace(STEP_4) { suffix, end -> measure(end) > 1 && (suffix != "ion" || word[end - 1] in "st") }
        finalLetters()
        return word.toString()
    }

    private fun cut(count: Int) = word.setLength(word.length - count)

    private fun plural() {
        when {
            word.endsWith("sses") && word.length > 4 || word.endsWith("ies") && word.length > 3 -> cut(2)
            word.endsWith("s") && !word.endsWith("ss") -> cut(1)
        }
    }

    /** Whether an ending went that may have to be repaired. */
    private fun pastOrGerund(): Boolean {
        val end = listOf("eed", "ed", "ing").firstOrNull { word.length > it.length && word.endsWith(it) } ?: return false
        val stem = word.length - end.length
        if (end == "eed") {
            if (measure(stem) > 0) cut(1)
            return false
        }
        return hasVowel(stem).also { if (it) cut(end.length) }
    }

    private fun repair() {
        val last = word.last()
        val found = REPAIR.find(word)
        when {
            found != null -> word.append('e')
            word.length > 1 && last == word[word.length - 2] && last !in "aeioulsz" -> cut(1)
            measure(word.length) == 1 && endsShort(word.length) -> word.append('e')
        }
    }

    private fun replace(rules: Rules, condition: (String, Int) -> Boolean) {
        val (suffix, next) = rules.find(word) ?: return
        val end = word.length - suffix.length
        if (condition(suffix, end)) word.replace(end, word.length, next)
    }

    private fun finalLetters() {
        val end = word.length - 1
        if (word.endsWith("e") && (measure(end) > 1 || measure(end) == 1 && !endsShort(end))) cut(1)
        if (word.endsWith("ll") && measure(word.length - 1) > 1) cut(1)
    }

    /** For each of the first [count] letters whether it is a consonant: y is one at the beginning and behind a vowel. */
    private fun consonants(count: Int): List<Boolean> {
        var before = false
        return (0 until count).map { i -> (word[i] !in "aeiou" && !(word[i] == 'y' && before)).also { before = it } }
    }

    /** How often a consonant follows a vowel in the first [count] letters. */
    private fun measure(count: Int): Int = consonants(count).zipWithNext().count { (first, second) -> !first && second }

    private fun hasVowel(count: Int) = (0 until count).any { word[it] in "aeiou" || it > 0 && word[it] == 'y' }

    /** Consonant, vowel, consonant, and the last is not w, x or y. */
    private fun endsShort(count: Int): Boolean =
        count > 0 && word[count - 1] !in "wxy" && consonants(count).takeLast(3) == listOf(true, false, true)
}
