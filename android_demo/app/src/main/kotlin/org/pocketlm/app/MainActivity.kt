package org.pocketlm.app

import android.app.Activity
import android.content.Intent
import android.content.res.Configuration
import android.os.Bundle
import android.view.View
import android.view.WindowInsets
import org.pocketlm.core.AppModel
import org.pocketlm.core.BenchSettings
import org.pocketlm.core.State
import java.io.File

private const val PICK = 1
private const val CHAT = "chat"

/** The one screen of the app: shows the model's state, and hands on what the user asks for. */
class MainActivity : Activity(), Actions {
    private val model: AppModel get() = (application as PocketApp).model
    private var busy: BusyScreen? = null
    private var chat: ChatScreen? = null

    override fun onCreate(savedInstanceState: Bundle?) {
        setTheme(if (isNight()) android.R.style.Theme_Material_NoActionBar else android.R.style.Theme_Material_Light_NoActionBar)
        super.onCreate(savedInstanceState)
        model.observe(::show)
        val killed = savedInstanceState?.getString(CHAT)?.takeIf { model.snapshot() == null }
        if (killed != null) model.restore(killed) else if (savedInstanceState == null) start(intent)
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        model.snapshot()?.let { outState.putString(CHAT, it) }
    }

    private fun isNight() = resources.configuration.uiMode and Configuration.UI_MODE_NIGHT_MASK == Configuration.UI_MODE_NIGHT_YES

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        start(intent)
    }

    private fun start(intent: Intent) {
        val task = automation(intent)
        if (task != null) model.automate(task) else if (model.state is State.Choosing) model.choose()
    }

    override fun onDestroy() {
        model.observe {}
        super.onDestroy()
    }

    private fun show(state: State) {
        window.decorView.keepScreenOn = state is State.Busy // a sleeping phone computes slowly
        if (state !is State.Busy) busy = null
        if (state !is State.Chatting) chat = null
        when (state) {
            is State.Choosing -> put(chooseScreen(state, this))
            is State.Busy -> (busy ?: BusyScreen(this, this).also { busy = it; put(it.view) }).show(state)
            is State.Chatting -> (chat ?: ChatScreen(this, this).also { chat = it; put(it.view) }).show(state)
            is State.Report -> put(reportScreen(state, this))
        }
    }

    /** Newer Androids draw apps behind their bars. */
    private fun put(view: View) {
        view.setOnApplyWindowInsetsListener { it, insets -> insets.also { _ -> pad(it, insets) } }
        setContentView(view)
    }

    @Suppress("DEPRECATION") // the successor is not in Android 8
    private fun pad(view: View, insets: WindowInsets) = view.setPadding(
        insets.systemWindowInsetLeft, insets.systemWindowInsetTop, insets.systemWindowInsetRight, insets.systemWindowInsetBottom,
    )

    override fun open(folder: File) = model.open(folder)

    override fun pickFolder() = startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK)

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        val tree = data?.data ?: return
        if (requestCode == PICK && resultCode == RESULT_OK) model.import(TreeImport(contentResolver, tree)::copy)
    }

    override fun send(text: String) = model.send(text)

    override fun search(on: Boolean) = model.search(on)

    override fun stop() = model.stop()

    override fun certificate() = model.certificate()

    override fun verify() = model.verify()

    override fun bench(settings: BenchSettings) = model.bench(settings)

    override fun choose() = model.choose()

    override fun backToChat() = model.backToChat()
}
