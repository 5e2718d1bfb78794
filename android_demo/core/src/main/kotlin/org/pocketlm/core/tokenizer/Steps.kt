package org.pocketlm.core.tokenizer

import com.google.gson.JsonObject
import org.pocketlm.core.UnexpectedJson
import org.pocketlm.core.array
import org.pocketlm.core.flag
import org.pocketlm.core.text
import org.pocketlm.core.textOrNull
import java.text.Normalizer
import java.util.regex.Pattern

/** Changes a text before it is split. */
internal typealias Normalize = (String) -> String

/** A part of a text; [first] if it stands at the text's very beginning. */
internal data class Part(val text: String, val first: Boolean)

/** Splits a part into those that the model encodes one by one. */
internal typealias Split = (Part) -> List<Part>

private const val GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

// Unicode's White_Space, which \s means to the library; Java's and Android's \s mean less.
private const val SPACE = "\\t-\\r\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"

/** A regular expression of the library: \s and ignoring case follow Unicode, on the JVM as on Android. */
internal fun unicodePattern(expression: String): Pattern {
    val result = StringBuilder()
    var inClass = 0
    var i = 0
    while (i < expression.length) {
        val two = expression.substring(i, minOf(i + 2, expression.length))
        when {
            two == "\\s" -> result.append(if (inClass > 0) SPACE else "[$SPACE]")
            two == "\\S" -> result.append("[^$SPACE]")
            two.startsWith("\\") -> result.append(two)
            else -> result.append(two[0])
        }
        if (two[0] == '[') inClass++
        if (two[0] == ']' && inClass > 0) inClass--
        i += if (two[0] == '\\') two.length else 1
    }
    return Pattern.compile(result.toString(), Pattern.UNICODE_CASE)
}

private fun unknown(kind: String, step: JsonObject): Nothing =
    throw UnexpectedJson("the $kind '${step.textOrNull("type")}' is not known to this app")

internal fun normalizer(step: JsonObject?): Normalize =
    when (step?.text("type")) {
        null -> { text -> text }
        "Sequence" -> steps(step, "normalizers").map(::normalizer).let { all -> { text -> all.fold(text) { result, one -> one(result) } } }
        "Prepend" -> step.text("prepend").let { front -> { text -> if (text.isEmpty()) text else front + text } }
        "Replace" -> replace(step)
        "NFC" -> { text -> Normalizer.normalize(text, Normalizer.Form.NFC) }
        "NFD" -> { text -> Normalizer.normalize(text, Normalizer.Form.NFD) }
        "NFKC" -> { text -> Normalizer.normalize(text, Normalizer.Form.NFKC) }
        "NFKD" -> { text -> Normalizer.normalize(text, Normalizer.Form.NFKD) }
        else -> unknown("normalizer", step)
    }

internal fun replace(step: JsonObject): Normalize {
    val pattern = pattern(step)
    val content = java.util.regex.Matcher.quoteReplacement(step.text("content"))
    return { text -> pattern.matcher(text).replaceAll(content) }
}

internal fun preTokenizer(step: JsonObject?): Split =
    when (step?.text("type")) {
        null -> { part -> listOf(part) }
        "Sequence" -> steps(step, "pretokenizers").map(::preTokenizer).let { all ->
            { part -> all.fold(listOf(part)) { parts, one -> parts.flatMap(one) } }
        }
        "Digits" -> digits(step.flag("individual_digits"))
        "Split" -> split(pattern(step), step.text("behavior"), step.flag("invert"))
        "ByteLevel" -> byteLevel(step.flag("add_prefix_space"), step.get("use_regex") == null || step.flag("use_regex"))
        "Metaspace" -> metaspace(step)
        else -> unknown("pre-tokenizer", step)
    }

private fun byteLevel(prefixSpace: Boolean, useRegex: Boolean): Split {
    val pattern = if (useRegex) unicodePattern(GPT2) else null
    return { part ->
        val text = if (prefixSpace && !part.text.startsWith(" ")) " " + part.text else part.text
        val whole = Part(text, part.first)
        (if (pattern == null) listOf(whole) else isolate(whole, ranges(pattern, text))).map { Part(ByteLevel.encode(it.text), it.first) }
    }
}

private fun metaspace(step: JsonObject): Split {
    val mark = step.text("replacement")
    val scheme = step.textOrNull("prepend_scheme") ?: if (step.flag("add_prefix_space")) "always" else "never"
    val splits = step.get("split") == null || step.flag("split")
    return { part ->
        val text = part.text.replace(" ", mark)
        val prepends = scheme == "always" || scheme == "first" && part.first
        val marked = Part(if (prepends && !text.startsWith(mark)) mark + text else text, part.first)
        if (splits) cutBefore(marked, mark) else listOf(marked)
    }
}

private fun cutBefore(part: Part, mark: String): List<Part> {
    val starts = part.text.indices.filter { part.text.startsWith(mark, it) }
    return isolate(part, (listOf(0) + starts).distinct().zip(starts.filter { it > 0 } + part.text.length).map { (from, to) -> from until to })
}

private fun digits(individual: Boolean): Split = { part ->
    val found = mutableListOf<IntRange>()
    var i = 0
    while (i < part.text.length) {
        val code = part.text.codePointAt(i)
        val next = i + Character.charCount(code)
        if (isNumeric(code)) {
            val last = found.lastOrNull()
            if (!individual && last != null && last.last + 1 == i) found[found.size - 1] = last.first until next else found += i until next
        }
        i = next
    }
    isolate(part, found)
}

private fun isNumeric(code: Int) = when (Character.getType(code).toByte()) {
    Character.DECIMAL_DIGIT_NUMBER, Character.LETTER_NUMBER, Character.OTHER_NUMBER -> true
    else -> false
}

private fun split(pattern: Pattern, behavior: String, invert: Boolean): Split {
    if (behavior != "Isolated" && behavior != "Removed") throw UnexpectedJson("the split behaviour '$behavior' is not known to this app")
    return { part ->
        val found = ranges(pattern, part.text)
        val delimiters = if (invert) gaps(found, part.text.length) else found
        val kept = if (behavior == "Removed") gaps(delimiters, part.text.length) else null
        if (kept == null) isolate(part, delimiters) else kept.map { Part(part.text.substring(it), part.first && it.first == 0) }
    }
}

private fun ranges(pattern: Pattern, text: String): List<IntRange> {
    val matcher = pattern.matcher(text)
    return generateSequence { if (matcher.find()) matcher.start() until matcher.end() else null }.filterNot { it.isEmpty() }.toList()
}

private fun gaps(ranges: List<IntRange>, length: Int): List<IntRange> {
    val starts = listOf(0) + ranges.map { it.last + 1 }
    val ends = ranges.map { it.first } + length
    return starts.zip(ends).map { (from, to) -> from until to }.filterNot { it.isEmpty() }
}

/** These ranges and what lies between them, in order. */
private fun isolate(part: Part, ranges: List<IntRange>): List<Part> =
    (ranges.filterNot { it.isEmpty() } + gaps(ranges, part.text.length)).sortedBy { it.first }
        .map { Part(part.text.substring(it), part.first && it.first == 0) }
