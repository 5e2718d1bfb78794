package org.pocketlm.app

import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import org.pocketlm.core.Reading
import org.pocketlm.core.Sensors
import java.io.File

private val THERMAL = listOf("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")

class AndroidSensors(private val context: Context) : Sensors {
    override fun read() = Reading(current(), temperature(), thermalStatus())

    /** Negative while the battery is drained, on phones that follow the documentation; null where it is not told. */
    private fun current(): Double? {
        val battery = context.getSystemService(Context.BATTERY_SERVICE) as BatteryManager
        val microamperes = battery.getIntProperty(BatteryManager.BATTERY_PROPERTY_CURRENT_NOW)
        return if (microamperes == Int.MIN_VALUE || microamperes == 0) null else microamperes / 1e3
    }

    private fun temperature(): Double? {
        val battery = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED)) ?: return null
        val tenths = battery.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, Int.MIN_VALUE)
        return if (tenths == Int.MIN_VALUE) null else tenths / 10.0
    }

    private fun thermalStatus(): String? {
        if (Build.VERSION.SDK_INT < Build.VERSION_CODES.Q) return null
        val power = context.getSystemService(Context.POWER_SERVICE) as PowerManager
        return THERMAL.getOrNull(power.currentThermalStatus)
    }

    override fun peakMemoryBytes(): Long {
        val line = File("/proc/self/status").readLines().firstOrNull { it.startsWith("VmHWM:") } ?: return 0
        return line.filter { it.isDigit() }.toLong() * 1024
    }
}
