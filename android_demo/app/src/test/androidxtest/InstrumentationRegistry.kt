package androidx.test.platform.app

import android.app.Instrumentation
import android.os.Bundle

/** The parts of androidx.test's monitor that Robolectric 4.16 calls, written anew: only Google's repository has them. */
object InstrumentationRegistry {
    private var instrumentation: Instrumentation? = null

    @JvmStatic
    fun registerInstance(instance: Instrumentation?, @Suppress("UNUSED_PARAMETER") arguments: Bundle?) {
        instrumentation = instance
    }

    @JvmStatic
    fun getInstrumentation(): Instrumentation = checkNotNull(instrumentation) { "no instrumentation was registered" }
}
