package org.pocketlm.core

import com.google.gson.JsonElement
import com.google.gson.JsonObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.pocketlm.core.tokenizer.Tokenizer
import java.io.File

class BundleTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val good = File(GOLDEN, "bundle/good")

    @Test
    fun `a good bundle is read`() {
        val bundle = Bundle.open(good)
        val shares = mutableListOf<Double>()
        assertTrue(bundle.checkHashes { shares.add(it) })
        assertEquals(shares.sorted(), shares)
        assertEquals(1.0, shares.last(), 1e-9)
        assertEquals(listOf("onnx"), bundle.manifest.targets)
        assertEquals(128, bundle.manifest.context)
        assertEquals(setOf(Tokenizer.open(bundle.file("tokenizer.json")).id("<|im_end|>")), bundle.manifest.stopTokens)
        assertEquals(8, Golden.open(bundle.file("golden.json"), bundle.manifest.vocabSize).prefill)
    }

    @Test
    fun `every broken bundle is refused`() {
        for (case in goldenJson("bundle/broken.json").objects()) {
            val folder = temporary.newFolder()
            good.copyRecursively(folder, overwrite = true)
            damage(folder, case)
            val message = refusal { Bundle.open(folder).checkHashes() }
            for (word in case.get("words").asJsonArray) {
                assertTrue("${case.get("name")}: $message", message.contains(word.asString))
            }
        }
    }

    private fun damage(folder: File, case: JsonObject) {
        case.get("manifest")?.let { patch ->
            val file = File(folder, "pocketlm.json")
            file.writeText(mergePatch(parseJson(file.readText()), patch).toString())
        }
        case.get("files")?.asJsonObject?.entrySet()?.forEach { (name, text) ->
            if (text.isJsonNull) File(folder, name).delete() else File(folder, name).writeText(text.asString)
        }
    }

    /** RFC 7396. */
    private fun mergePatch(target: JsonElement?, patch: JsonElement): JsonElement {
        if (patch !is JsonObject) return patch
        val result = (target as? JsonObject)?.deepCopy() ?: JsonObject()
        for ((key, value) in patch.entrySet()) {
            if (value.isJsonNull) result.remove(key) else result.add(key, mergePatch(result.get(key), value))
        }
        return result
    }

    @Test
    fun `files that only some screens need are refused when they are read`() {
        val folder = temporary.newFolder()
        for ((name, text) in listOf("golden.json" to "{}", "golden.json" to good.resolve("golden.json").readText().replace("[[{", "[[{}, {"))) {
            File(folder, name).writeText(text)
            assertTrue(refusal { Golden.open(File(folder, name), 600) }.contains("golden.json"))
        }
        assertTrue(refusal { Golden.open(good.resolve("golden.json"), 10) }.contains("do not fit together"))
        File(folder, "chat_turns.json").writeText("{\"schema\": 2}")
        assertTrue(refusal { ChatTurns.open(File(folder, "chat_turns.json")) }.contains("schema 2"))
        assertTrue(refusal { OnnxRuntime.open(good.resolve("onnx"), 1) }.contains("ONNX Runtime cannot load it"))
    }

    @Test
    fun `hashing can be stopped`() {
        assertFalse(Bundle.open(good).checkHashes { false })
        assertNull(sha256(good.resolve("golden.json")) { false })
    }

    @Test
    fun `a model that does not fit the memory is refused before it is loaded`() {
        val manifest = Bundle.open(good).manifest
        val cache = 2L * 4 * 2 * 2 * 16 * 128 // keys and values, floats, layers, heads, width, context
        val need = memoryNeed(manifest, "onnx", 100_000_000)
        assertEquals(cache, need.cacheBytes)
        assertTrue(need.refusal!!.contains("needs about 150 MB and 100 MB are free"))
        assertNull(memoryNeed(manifest, "onnx", 1_000_000_000).refusal)
    }
}
