package org.pocketlm.app

import android.app.Application
import android.os.Handler
import android.os.Looper
import org.pocketlm.core.AppModel
import java.util.concurrent.Executor
import java.util.concurrent.Executors

/** Holds what outlives an activity: a rotation must not lose the chat, nor load the model again. */
open class PocketApp : Application() {
    open val model: AppModel by lazy { createModel() }

    protected open fun createModel(): AppModel {
        val main = Handler(Looper.getMainLooper())
        val onMain = Executor { task -> if (Looper.myLooper() == main.looper) task.run() else main.post(task) }
        return AppModel(AndroidPlatform(this), Executors.newSingleThreadExecutor(), onMain, threads())
    }

    companion object {
        /** Half of the cores: the other half of a phone's are slow ones, which a kernel would have to wait for. */
        fun threads() = (Runtime.getRuntime().availableProcessors() / 2).coerceIn(1, 4)
    }
}
