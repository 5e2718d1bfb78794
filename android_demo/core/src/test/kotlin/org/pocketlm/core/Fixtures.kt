package org.pocketlm.core

import com.google.gson.JsonArray
import com.google.gson.JsonElement
import com.google.gson.JsonObject
import org.junit.Assert.assertTrue
import java.io.File

/** tests/golden of the repository: what Python, Kotlin and Swift share; its make.py says what the files hold. */
val GOLDEN = File(requireNotNull(System.getProperty("golden")) { "start the tests with -Dgolden=FOLDER" })

fun goldenJson(name: String): JsonElement = parseJson(File(GOLDEN, name).readText())

fun JsonElement.objects(): List<JsonObject> = asJsonArray.map { it.asJsonObject }

fun JsonElement.tokens(): List<Int> = asJsonArray.map { it.asInt }

fun texts(): Map<String, String> =
    goldenJson("awkward.json").asJsonObject.get("texts").objects().associate { it.get("name").asString to it.get("text").asString }

fun messages(list: JsonElement): List<Message> = list.objects().map { Message(it.get("role").asString, it.get("content").asString) }

/** The message of the [InputException] that [work] throws; it must be one line. */
fun refusal(work: () -> Unit): String {
    try {
        work()
    } catch (error: InputException) {
        assertTrue(error.message, '\n' !in error.message.orEmpty())
        return error.message.orEmpty()
    }
    throw AssertionError("nothing was refused")
}

/** A sum of rows [seed, scale], as make.py describes. */
fun generated(rows: JsonArray, size: Int): FloatArray {
    val total = DoubleArray(size)
    for (row in rows) {
        val random = Uniforms(row.asJsonArray[0].asString.toULong())
        val scale = row.asJsonArray[1].asDouble
        for (i in total.indices) total[i] += scale * (random.next() - 0.5)
    }
    return FloatArray(size) { total[it].toFloat() }
}

/** Gives these logits, row after row, whatever it is fed. */
class ScriptedRuntime(private val logits: List<FloatArray>, override val context: Int = 1000) : LlmRuntime {
    val fed = mutableListOf<List<Int>>()
    private var calls = 0
    var closed = false
    override var position = 0
        private set
    override val description = "scripted"

    override fun run(tokens: IntArray): FloatArray {
        checkTokens(this, Int.MAX_VALUE, tokens)
        fed += tokens.toList()
        position += tokens.size
        return logits[calls++ % logits.size]
    }

    override fun reset() {
        position = 0
    }

    override fun close() {
        closed = true
    }
}

/** Logits whose likeliest token is [token]. */
fun peak(token: Int, size: Int) = FloatArray(size) { if (it == token) 10f else 0f }
