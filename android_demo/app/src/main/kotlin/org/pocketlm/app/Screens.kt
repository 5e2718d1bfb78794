package org.pocketlm.app

import android.content.Context
import android.view.View
import android.widget.ProgressBar
import org.pocketlm.core.BenchSettings
import org.pocketlm.core.State

/** What the views can ask for; the activity does it. */
interface Actions {
    fun open(folder: java.io.File)

    fun pickFolder()

    fun send(text: String)

    fun search(on: Boolean)

    fun stop()

    fun certificate()

    fun verify()

    fun bench(settings: BenchSettings)

    fun choose()

    fun backToChat()
}

private const val SUSTAINED_SECONDS = 300

fun Context.chooseScreen(state: State.Choosing, actions: Actions): View {
    val views = mutableListOf<View>(heading("pocketlm"))
    state.notice?.let { views += text(it).apply { accessibilityLiveRegion = View.ACCESSIBILITY_LIVE_REGION_POLITE } }
    if (state.choices.isEmpty()) views += text("There is no model on this phone yet. Push one with: pocketlm device install")
    for (choice in state.choices) {
        views += button("${choice.title}\n${choice.detail}") { actions.open(choice.folder) }.apply { isEnabled = choice.usable }
    }
    views += button("Import a folder") { actions.pickFolder() }
    views += button("Look again") { actions.choose() }
    return scrolling(column(*views.toTypedArray()))
}

/** Changes with every step of the work: made once, then updated. */
class BusyScreen(context: Context, actions: Actions) {
    private val label = context.heading("").apply { accessibilityLiveRegion = View.ACCESSIBILITY_LIVE_REGION_POLITE }
    private val bar = ProgressBar(context, null, android.R.attr.progressBarStyleHorizontal).apply { max = 1000 }
    val view: View = context.column(label, bar, context.button("Stop") { actions.stop() })

    fun show(state: State.Busy) {
        if (label.text.toString() != state.what) label.text = state.what
        bar.isIndeterminate = state.share == null
        bar.progress = ((state.share ?: 0.0) * bar.max).toInt()
        bar.contentDescription = state.share?.let { "${(it * 100).toInt()} percent" } ?: "working"
    }
}

fun Context.reportScreen(state: State.Report, actions: Actions): View {
    val views = mutableListOf<View>(heading(state.title))
    state.verdict?.let { views += text(if (it) "Passed" else "Failed", 18f, bold = true) }
    for (row in state.rows) {
        // One view for a row, so that TalkBack reads the value with its name.
        views += text("${row.label}\n${row.value}")
    }
    views += button("Back to the chat") { actions.backToChat() }
    views += button("Other models") { actions.choose() }
    return scrolling(column(*views.toTypedArray()))
}

fun Context.chatMenu(actions: Actions): View = column(
    row(button("Certificate") { actions.certificate() }, button("Verify on this phone") { actions.verify() }),
    row(
        button("Benchmark") { actions.bench(BenchSettings(threads = PocketApp.threads())) },
        button("Benchmark, 5 minutes") { actions.bench(BenchSettings(threads = PocketApp.threads(), sustainedSeconds = SUSTAINED_SECONDS)) },
    ),
    button("Other models") { actions.choose() },
)
