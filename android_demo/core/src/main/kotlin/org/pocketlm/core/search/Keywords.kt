package org.pocketlm.core.search

import java.util.Locale

private val WORD = Regex("[\\p{L}\\p{N}_]+(?:[-'’.][\\p{L}\\p{N}_]+)*")
private const val LONGEST_QUERY = 32 // words

// Those of runtimes/data/function_words.txt; a test compares them.
private val FUNCTION_WORDS = (
    "a about an and any are as at be been but by can could did do does for from give had has have he her him his how i if in into is " +
        "it its kind many me much my name of on one or our please she so some tell than that the their them then there these they " +
        "this those to type us was we were what when where which who whom whose why will with would you your"
    ).split(" ").toSet()

/** The words of a question that say what it is about, each once, in order; all its words if none does. */
fun keywords(text: String): List<String> {
    val words = WORD.findAll(text).map { it.value.lowercase(Locale.ROOT) }.distinct().toList()
    return words.filter { it !in FUNCTION_WORDS }.ifEmpty { words }.take(LONGEST_QUERY)
}
