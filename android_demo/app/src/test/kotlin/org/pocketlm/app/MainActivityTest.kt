package org.pocketlm.app

import android.content.Intent
import android.graphics.Bitmap
import android.graphics.Canvas
import android.os.Looper
import android.view.View
import android.view.ViewGroup
import android.widget.Button
import android.widget.EditText
import android.widget.Switch
import android.widget.TextView
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotSame
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.pocketlm.core.InputException
import org.pocketlm.core.State
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ActivityController
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import java.io.File

/** Drives the activity on a simulated Android 14, with a scripted runtime and the tests' small bundle. */
@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(manifest = Config.NONE, sdk = [34], application = TestApp::class, qualifiers = "w411dp-h820dp-xhdpi")
class MainActivityTest {
    private val app get() = RuntimeEnvironment.getApplication() as TestApp
    private lateinit var controller: ActivityController<MainActivity>
    private val activity get() = controller.get()

    @Before
    fun start() {
        app.installGoodBundle()
        controller = Robolectric.buildActivity(MainActivity::class.java).setup().visible()
    }

    private fun views(root: View = activity.window.decorView): List<View> =
        listOf(root) + if (root is ViewGroup) (0 until root.childCount).flatMap { views(root.getChildAt(it)) } else emptyList()

    private fun texts() = views().filterIsInstance<TextView>().filter { it.isShown }.map { it.text.toString() }

    private fun button(label: String) = views().filterIsInstance<Button>().first { it.text.startsWith(label) }

    private fun press(label: String) {
        button(label).performClick()
        shadowOf(Looper.getMainLooper()).idle() // lets the new views be laid out
    }

    private fun say(message: String) {
        views().filterIsInstance<EditText>().single().setText(message)
        press("Send")
    }

    private fun openTiny() = press("tiny")

    /** A picture of the window, if the build asks for pictures. */
    private fun picture(name: String) {
        val folder = System.getProperty("screenshots").orEmpty().ifEmpty { return }
        val window = activity.window.decorView
        val bitmap = Bitmap.createBitmap(window.width, window.height, Bitmap.Config.ARGB_8888)
        window.draw(Canvas(bitmap))
        File(folder, "$name.png").outputStream().use { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }
    }

    @Test
    fun `a bundle is chosen and answers`() {
        picture("choose")
        assertTrue(texts().any { it.startsWith("tiny\nint4, onnx") })
        openTiny()
        say("What is the capital of France?")
        picture("chat")
        assertEquals(listOf("You", "What is the capital of France?", "Model", ANSWER), texts().filter { it in setOf("You", "Model", ANSWER) || "France?" in it })
        assertTrue(texts().any { "first token after" in it })
    }

    @Test
    @Config(qualifiers = "w411dp-h820dp-night-xhdpi")
    fun `dark mode is followed`() {
        openTiny()
        say("Good evening!")
        picture("chat-dark")
        val title = views().filterIsInstance<TextView>().first { it.text.toString() == "tiny" }
        assertTrue("light text", android.graphics.Color.luminance(title.currentTextColor) > 0.5f)
    }

    @Test
    fun `a rotation keeps the chat, what is typed, and the model`() {
        openTiny()
        say("Hello")
        views().filterIsInstance<EditText>().single().setText("half a sent")
        val before = activity
        controller.recreate()
        assertNotSame(before, activity)
        assertTrue(texts().containsAll(listOf("Hello", ANSWER)))
        assertEquals("half a sent", views().filterIsInstance<EditText>().single().text.toString())
        assertEquals(1, app.opened)
    }

    @Test
    fun `a chat survives that Android kills the app`() {
        openTiny()
        say("Hello")
        val saved = android.os.Bundle()
        controller.saveInstanceState(saved)
        app.forget()
        controller = Robolectric.buildActivity(MainActivity::class.java).create(saved).start().restoreInstanceState(saved).resume().visible()
        assertTrue(texts().containsAll(listOf("Hello", ANSWER)))
        assertEquals(2, app.opened)
    }

    private fun search() = views().filterIsInstance<Switch>().single()

    private fun installFacts() = File(System.getProperty("golden"), "facts.db").copyTo(File(app.bundles, "tiny/facts.db"), overwrite = true)

    @Test
    fun `answers are looked up when search is on, and name their sources`() {
        installFacts()
        app.enlargeContext(800)
        openTiny()
        say("How high is Ben Nevis?")
        assertFalse("off at first", texts().any { it.startsWith("Sources:") })
        search().performClick()
        say("Which mountain is the highest?")
        picture("search")
        assertTrue(texts().contains("Sources:\n[1] Ben Nevis (hills.md)"))
        assertTrue("<passages>\n[1] Ben Nevis: Ben Nevis is the highest mountain of Scotland." in app.asked)
        say("What of zebras and giraffes?")
        assertTrue(texts().any { it.startsWith("search: nothing found for zebras giraffes; this answer is from the model's memory\n") })
        assertEquals(3, texts().count { it == ANSWER })
        assertFalse(texts().any { it.startsWith("Sources:") })
        assertFalse("passages are gone from the conversation", "passages" in app.asked)
        controller.recreate()
        assertTrue("still on", search().isChecked)
        press("More")
        press("Other models") // closes the index
    }

    @Test
    fun `without an index there is no search, and one that cannot be read is told`() {
        openTiny()
        assertEquals(View.GONE, search().visibility)
        press("More")
        press("Other models")
        File(app.bundles, "tiny/facts.db").writeText("no index")
        openTiny()
        assertEquals(View.GONE, search().visibility)
        assertTrue(texts().any { it.startsWith("search: facts.db: is no index") })
        say("Hello")
        assertTrue(texts().contains(ANSWER))
    }

    @Test
    fun `an answer can be stopped`() {
        openTiny()
        app.whileAnswering = { press("Stop") }
        say("Hello")
        assertTrue(texts().any { it.startsWith("stopped, ") })
        assertEquals("Send", button("Send").text)
    }

    @Test
    fun `this phone is verified`() {
        openTiny()
        press("More")
        press("Verify on this phone")
        picture("verify")
        assertTrue(texts().contains("This phone computes something else")) // the script knows nothing of golden.json
        assertTrue(texts().contains("Failed"))
        press("Back to the chat")
        assertTrue(views().filterIsInstance<EditText>().any())
    }

    @Test
    fun `the certificate is shown`() {
        openTiny()
        press("More")
        press("Certificate")
        picture("certificate")
        assertTrue(texts().contains("onnx: runtime\nKL 0.00500, top token 96.0 %, noise floor 0.00450"))
    }

    @Test
    fun `a benchmark is shown`() {
        openTiny()
        press("More")
        (activity as Actions).bench(org.pocketlm.core.BenchSettings(promptTokens = 16, newTokens = 4, runs = 2))
        picture("benchmark")
        assertTrue(texts().any { it.startsWith("Decode\n") })
        assertTrue(texts().any { it.startsWith("Peak memory\n") })
    }

    @Test
    fun `a phone without enough memory refuses before it loads`() {
        app.availableBytes = 50_000_000
        openTiny()
        assertEquals(0, app.opened)
        picture("memory")
        assertTrue(texts().any { "needs about" in it && "50 MB are free" in it })
    }

    @Test
    fun `a bundle that is damaged says so and cannot be opened`() {
        File(app.bundles, "tiny/golden.json").appendText(" ")
        openTiny()
        assertTrue(texts().any { "golden.json is missing or was changed" in it })
        File(app.bundles, "tiny/pocketlm.json").writeText("{")
        press("Look again")
        assertFalse(button("tiny").isEnabled)
    }

    @Test
    fun `a runtime that fails to load is told`() {
        app.failure = InputException("model.onnx: ONNX Runtime cannot load it")
        openTiny()
        assertTrue(texts().any { "cannot load it" in it })
    }

    @Test
    fun `an intent verifies, measures and writes the results`() {
        val intent = Intent().putExtra("id", "r1").putExtra("bundle", "tiny").putExtra("verify", true).putExtra("bench", true)
            .putExtra("prompt_tokens", 16).putExtra("new_tokens", 4).putExtra("runs", 2)
        Robolectric.buildActivity(MainActivity::class.java, intent).setup()
        val results = app.results("r1")
        assertFalse(results.getAsJsonObject("verify").getAsJsonObject("onnx").get("passed").asBoolean)
        assertTrue(results.getAsJsonObject("bench").getAsJsonObject("targets").has("onnx"))
        assertEquals("tiny", results.getAsJsonObject("bundle").get("name").asString)
    }

    @Test
    fun `an intent that cannot be served writes why`() {
        Robolectric.buildActivity(MainActivity::class.java, Intent().putExtra("id", "r2").putExtra("bundle", "absent")).setup()
        assertTrue(app.results("r2").get("error").asString.contains("there is no bundle absent"))
        for (name in listOf("../x", "a/b", "", ".hidden")) {
            assertEquals(null, automation(Intent().putExtra("id", name).putExtra("bundle", "tiny")))
            assertEquals(null, automation(Intent().putExtra("id", "r3").putExtra("bundle", name)))
        }
    }

    @Test
    fun `every control is reachable by touch and by TalkBack`() {
        openTiny()
        say("Hello")
        press("More")
        val controls = views().filter { it.isShown && it.isClickable && (it is Button || it is EditText) }
        assertTrue(controls.size >= 8)
        for (control in controls) {
            val label = control.contentDescription ?: (control as TextView).text
            assertTrue("a control without a label", label.isNotBlank())
            assertTrue("$label is ${control.height} high", control.height >= activity.dp(40))
        }
    }

    @Test
    @Config(qualifiers = "w411dp-h820dp-xhdpi", fontScale = 2.0f)
    fun `large fonts are followed`() {
        openTiny()
        say("Hello")
        picture("chat-large")
        val message = views().filterIsInstance<TextView>().first { it.text.toString() == "Hello" }
        val metrics = activity.resources.displayMetrics
        // Since Android 14 a font scale of 2 enlarges large text less than small text: 16 sp become 28 dp, not 32.
        assertEquals(28f * metrics.density, message.textSize, 1f)
    }

    @Test
    fun `state and screen agree`() {
        assertTrue(app.model.state is State.Choosing)
        openTiny()
        assertTrue(app.model.state is State.Chatting)
    }
}
