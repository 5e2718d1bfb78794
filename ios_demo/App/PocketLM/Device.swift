import Foundation
import PocketCore
import UIKit
import os

/// This iPhone, as far as it concerns a model.
enum Device {
    /// What iOS still lets this app take.
    static var availableMemoryBytes: Int {
        // Where an app has no limit, in a simulator or on a Mac, the system says 0.
        let available = os_proc_available_memory()
        return available > 0 ? available : Int(clamping: ProcessInfo.processInfo.physicalMemory)
    }

    /// The most memory that was resident, as `pocketlm bench` counts it.
    static var peakMemoryBytes: Int {
        var usage = rusage()
        getrusage(RUSAGE_SELF, &usage)  // fails for a bad pointer alone
        return Int(usage.ru_maxrss)
    }

    /// Such as "iPhone16,2".
    static var model: String {
        if let simulated = ProcessInfo.processInfo.environment["SIMULATOR_MODEL_IDENTIFIER"] {
            return "\(simulated) simulator"
        }
        var system = utsname()
        uname(&system)
        let bytes = withUnsafeBytes(of: &system.machine) { Array($0.prefix { $0 != 0 }) }
        return String(decoding: bytes, as: UTF8.self)
    }

    @MainActor static var description: DeviceDescription {
        DeviceDescription(
            model: model, system: "\(UIDevice.current.systemName) \(UIDevice.current.systemVersion)",
            cores: ProcessInfo.processInfo.activeProcessorCount,
            memoryBytes: Int(clamping: ProcessInfo.processInfo.physicalMemory))
    }

    static func read() -> Reading {
        Reading(thermalStatus: thermal, isLowPowerMode: ProcessInfo.processInfo.isLowPowerModeEnabled)
    }

    private static var thermal: String {
        switch ProcessInfo.processInfo.thermalState {
        case .nominal: "nominal"
        case .fair: "fair"
        case .serious: "serious"
        case .critical: "critical"
        @unknown default: "unknown"
        }
    }
}
