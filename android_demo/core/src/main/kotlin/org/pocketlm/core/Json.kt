package org.pocketlm.core

import com.google.gson.JsonArray
import com.google.gson.JsonElement
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import com.google.gson.JsonPrimitive
import com.google.gson.Strictness
import com.google.gson.stream.JsonReader
import java.io.File
import java.io.IOException

/** A value that is not what a file promises; the reader of the file turns it into an [InputException]. */
class UnexpectedJson(message: String) : RuntimeException(message)

/** The JSON in a text, strictly; throws [com.google.gson.JsonParseException] or [IOException]. */
fun parseJson(text: String): JsonElement =
    JsonReader(text.reader()).use { reader ->
        reader.strictness = Strictness.STRICT
        JsonParser.parseReader(reader)
    }

/** Reads a JSON object and makes something of it; any damage becomes an [InputException] that names the file. */
fun <T> readJson(file: File, make: (JsonObject) -> T): T =
    try {
        make(parseJson(file.readText()).asObject("the file"))
    } catch (error: InputException) {
        throw error
    } catch (error: IOException) {
        throw InputException("$file: missing or damaged (${error.message}); export the model again", error)
    } catch (error: RuntimeException) { // Gson's, and those of the values
        throw InputException("$file: damaged (${oneLine(error)}); export the model again", error)
    }

fun JsonElement?.asObject(what: String): JsonObject = this as? JsonObject ?: throw UnexpectedJson("$what is not an object")

fun JsonElement?.asArray(what: String): JsonArray = this as? JsonArray ?: throw UnexpectedJson("$what is not a list")

fun JsonObject.obj(key: String): JsonObject = get(key).asObject(key)

fun JsonObject.array(key: String): JsonArray = get(key).asArray(key)

fun JsonObject.text(key: String): String = textOrNull(key) ?: throw UnexpectedJson("$key is missing")

fun JsonObject.textOrNull(key: String): String? =
    when (val value = get(key)) {
        null -> null
        is JsonPrimitive -> if (value.isString) value.asString else throw UnexpectedJson("$key is not a text")
        else -> if (value.isJsonNull) null else throw UnexpectedJson("$key is not a text")
    }

fun JsonObject.int(key: String): Int = get(key).asInt(key)

fun JsonObject.flag(key: String): Boolean = (get(key) as? JsonPrimitive)?.takeIf { it.isBoolean }?.asBoolean ?: false

/** A whole number; Gson would make one of "128" and of 1.5 as well. */
fun JsonElement?.asInt(what: String): Int {
    val number = (this as? JsonPrimitive)?.takeIf { it.isNumber }
    return number?.asString?.toIntOrNull() ?: throw UnexpectedJson("$what is not a whole number")
}

fun JsonElement?.asLong(what: String): Long {
    val number = (this as? JsonPrimitive)?.takeIf { it.isNumber }
    return number?.asString?.toLongOrNull() ?: throw UnexpectedJson("$what is not a whole number")
}

fun JsonElement?.asDouble(what: String): Double {
    val number = (this as? JsonPrimitive)?.takeIf { it.isNumber }
    return number?.asDouble ?: throw UnexpectedJson("$what is not a number")
}

fun JsonArray.ints(what: String): List<Int> = map { it.asInt(what) }

/** A JSON object of these pairs; nulls are left out. */
fun jsonOf(vararg pairs: Pair<String, Any?>): JsonObject =
    JsonObject().apply { pairs.forEach { (key, value) -> if (value != null) add(key, jsonValue(value)) } }

private fun jsonValue(value: Any): JsonElement =
    when (value) {
        is JsonElement -> value
        is Boolean -> JsonPrimitive(value)
        is Number -> JsonPrimitive(value)
        is Iterable<*> -> JsonArray().apply { value.forEach { add(jsonValue(requireNotNull(it))) } }
        is Map<*, *> -> JsonObject().apply { value.forEach { (key, inner) -> add("$key", jsonValue(requireNotNull(inner))) } }
        else -> JsonPrimitive("$value")
    }

fun oneLine(error: Throwable): String =
    "${error.javaClass.simpleName}: ${error.message.orEmpty()}".replace(Regex("\\s+"), " ").take(300)
