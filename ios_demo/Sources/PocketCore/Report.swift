import Foundation

/// The phone that a report is of.
public struct DeviceDescription: Codable, Equatable, Sendable {
    public let model: String
    public let system: String
    public let memoryBytes: Int
    public let processors: Int

    public init(model: String, system: String, memoryBytes: Int, processors: Int) {
        self.model = model
        self.system = system
        self.memoryBytes = memoryBytes
        self.processors = processors
    }

    enum CodingKeys: String, CodingKey {
        case model, system, processors
        case memoryBytes = "memory_bytes"
    }
}

/// What speed depends on besides the phone.
public struct Conditions: Codable, Equatable, Sendable {
    /// Apple's words: nominal, fair, serious, critical.
    public let thermal: String
    /// From 0 to 1; nil where there is no battery.
    public let batteryLevel: Double?
    public let isLowPowerMode: Bool

    public init(thermal: String, batteryLevel: Double?, isLowPowerMode: Bool) {
        self.thermal = thermal
        self.batteryLevel = batteryLevel
        self.isLowPowerMode = isLowPowerMode
    }

    enum CodingKeys: String, CodingKey {
        case thermal
        case batteryLevel = "battery_level"
        case isLowPowerMode = "low_power_mode"
    }
}

/// How long it took until the model could be used.
public struct LoadTimes: Codable, Equatable, Sendable {
    /// Once for each bundle on a phone; nil where it was compiled before, or the target is not compiled.
    public let compileSeconds: Double?
    public let firstSeconds: Double
    public var laterSeconds: Double?

    public init(compileSeconds: Double?, firstSeconds: Double, laterSeconds: Double?) {
        self.compileSeconds = compileSeconds
        self.firstSeconds = firstSeconds
        self.laterSeconds = laterSeconds
    }

    enum CodingKeys: String, CodingKey {
        case compileSeconds = "compile_seconds"
        case firstSeconds = "first_load_seconds"
        case laterSeconds = "later_load_seconds"
    }
}

/// Speed: medians with the names of `pocketlm bench`, every run, and what the phone was like.
public struct BenchmarkReport: Codable, Equatable, Sendable {
    public let promptTokens: Int
    public let newTokens: Int
    public let prefillTokensPerSecond: Double
    public let decodeTokensPerSecond: Double
    public let timeToFirstTokenSeconds: Double
    public let peakMemoryBytes: Int?
    public let before: Conditions
    public let after: Conditions
    public let runs: [BenchmarkRun]

    public init(
        _ plan: BenchmarkPlan, _ runs: [BenchmarkRun], before: Conditions, after: Conditions, peakMemoryBytes: Int?
    ) {
        promptTokens = plan.promptTokens
        newTokens = plan.newTokens
        prefillTokensPerSecond = median(runs.map(\.prefillTokensPerSecond))
        decodeTokensPerSecond = median(runs.map(\.decodeTokensPerSecond))
        timeToFirstTokenSeconds = median(runs.map(\.timeToFirstTokenSeconds))
        self.peakMemoryBytes = peakMemoryBytes
        self.before = before
        self.after = after
        self.runs = runs
    }

    enum CodingKeys: String, CodingKey {
        case before, after, runs
        case promptTokens = "prompt_tokens"
        case newTokens = "new_tokens"
        case prefillTokensPerSecond = "prefill_tokens_per_second"
        case decodeTokensPerSecond = "decode_tokens_per_second"
        case timeToFirstTokenSeconds = "time_to_first_token_seconds"
        case peakMemoryBytes = "peak_memory_bytes"
    }
}

/// An answer to the prompt that a program gave.
public struct AnswerReport: Codable, Equatable, Sendable {
    public let text: String
    public let tokens: [Int]
    public let reason: EndReason
    public let timing: Timing

    /// Nil if the pieces have no end: then there is no answer to report.
    public init?(_ pieces: [Piece]) {
        guard let end = pieces.last?.end else { return nil }
        text = pieces.map(\.text).joined()
        tokens = pieces.compactMap(\.token)
        reason = end.reason
        timing = end.timing
    }
}

/// What the app has measured on a phone, as the JSON that `pocketlm device` pulls.
public struct Report: Codable, Equatable, Sendable {
    public static let schemaVersion = 1

    public let device: DeviceDescription
    public var bundle: String?
    public var target: Target?
    public var load: LoadTimes?
    public var computePlans: [ComputePlan]?
    public var verification: Verification?
    public var benchmark: BenchmarkReport?
    public var answer: AnswerReport?
    /// What went wrong, in one line.
    public var error: String?
    private let schemaVersion: Int

    public init(device: DeviceDescription) {
        self.device = device
        schemaVersion = Self.schemaVersion
    }

    enum CodingKeys: String, CodingKey {
        case device, bundle, target, load, verification, benchmark, answer, error
        case computePlans = "compute_plans"
        case schemaVersion = "schema_version"
    }

    public func json() throws -> Data {
        try JSONFile.encode(self)
    }
}
