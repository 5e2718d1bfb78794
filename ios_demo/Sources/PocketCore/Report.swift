import Foundation

/// The phone that a report is of.
public struct DeviceDescription: Codable, Equatable, Sendable {
    public let platform: String
    /// Such as "iPhone16,2".
    public let model: String
    /// Such as "iOS 18.1".
    public let system: String
    public let abi: String
    public let cores: Int
    public let memoryBytes: Int

    public init(model: String, system: String, cores: Int, memoryBytes: Int) {
        platform = "ios"
        abi = "arm64"
        self.model = model
        self.system = system
        self.cores = cores
        self.memoryBytes = memoryBytes
    }

    enum CodingKeys: String, CodingKey {
        case platform, model, system, abi, cores
        case memoryBytes = "memory_bytes"
    }
}

/// What a phone tells about itself while it computes. iOS tells neither the battery's current nor a temperature.
public struct Reading: Codable, Equatable, Sendable {
    /// Apple's words: nominal, fair, serious, critical.
    public let thermalStatus: String
    public let isLowPowerMode: Bool

    public init(thermalStatus: String, isLowPowerMode: Bool) {
        self.thermalStatus = thermalStatus
        self.isLowPowerMode = isLowPowerMode
    }

    enum CodingKeys: String, CodingKey {
        case thermalStatus = "thermal_status"
        case isLowPowerMode = "low_power_mode"
    }
}

/// How long it took until the model could be used.
public struct LoadTimes: Codable, Equatable, Sendable {
    /// Once for each bundle on a phone; nil where it was compiled before, or the target is not compiled.
    public let compileSeconds: Double?
    public let firstSeconds: Double

    public init(compileSeconds: Double?, firstSeconds: Double) {
        self.compileSeconds = compileSeconds
        self.firstSeconds = firstSeconds
    }

    enum CodingKeys: String, CodingKey {
        case compileSeconds = "compile_seconds"
        case firstSeconds = "first_load_seconds"
    }
}

/// The speed of one artifact: medians with the names of `pocketlm bench`, every run, and what the phone was like.
public struct BenchmarkReport: Codable, Equatable, Sendable {
    public let compileSeconds: Double?
    public let firstLoadSeconds: Double
    public let laterLoadSeconds: Double
    public let prefillTokensPerSecond: Double
    public let decodeTokensPerSecond: Double
    public let timeToFirstTokenSeconds: Double
    public let peakMemoryBytes: Int
    /// What ran it.
    public let runtime: String
    public let runs: [BenchmarkRun]
    public let before: Reading
    public let after: Reading
    public let sustained: [BenchmarkWindow]

    public init(
        _ series: BenchmarkSeries, load: LoadTimes, laterLoadSeconds: Double, peakMemoryBytes: Int, runtime: String
    ) {
        compileSeconds = load.compileSeconds
        firstLoadSeconds = load.firstSeconds
        self.laterLoadSeconds = laterLoadSeconds
        prefillTokensPerSecond = median(series.runs.map(\.prefillTokensPerSecond))
        decodeTokensPerSecond = median(series.runs.map(\.decodeTokensPerSecond))
        timeToFirstTokenSeconds = median(series.runs.map(\.timeToFirstTokenSeconds))
        self.peakMemoryBytes = peakMemoryBytes
        self.runtime = runtime
        runs = series.runs
        before = series.before
        after = series.after
        sustained = series.sustained
    }

    enum CodingKeys: String, CodingKey {
        case runtime, runs, before, after, sustained
        case compileSeconds = "compile_seconds"
        case firstLoadSeconds = "first_load_seconds"
        case laterLoadSeconds = "later_load_seconds"
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

/// What the app has measured on a phone, as the JSON that `pocketlm device` pulls and `pocketlm bench --import` reads.
/// The Android app writes the same, less `answer`, `compute_plans` and what is named above as iOS's own.
public struct Report: Codable, Equatable, Sendable {
    public struct BundleName: Codable, Equatable, Sendable {
        public let name: String
        public let manifestSHA256: String

        enum CodingKeys: String, CodingKey {
            case name
            case manifestSHA256 = "manifest_sha256"
        }
    }

    public struct Benchmark: Codable, Equatable, Sendable {
        public let promptTokens: Int
        public let newTokens: Int
        /// 0: the runtime decides.
        public let threads: Int
        /// By the target's name.
        public let targets: [String: BenchmarkReport]

        enum CodingKeys: String, CodingKey {
            case threads, targets
            case promptTokens = "prompt_tokens"
            case newTokens = "new_tokens"
        }
    }

    private let schemaVersion: Int
    private let kind: String
    public let device: DeviceDescription
    /// Without a hash if no such bundle could be read.
    public private(set) var bundle = BundleName(name: "", manifestSHA256: "")
    /// By the target's name.
    public private(set) var verify: [String: Verification]?
    public private(set) var bench: Benchmark?
    public var computePlans: [ComputePlan]?
    public var answer: AnswerReport?
    /// What went wrong, in one line.
    public var error: String?

    public init(device: DeviceDescription) {
        schemaVersion = 1
        kind = "device"
        self.device = device
    }

    enum CodingKeys: String, CodingKey {
        case kind, device, bundle, verify, bench, answer, error
        case computePlans = "compute_plans"
        case schemaVersion = "schema_version"
    }

    /// A report about a bundle that may turn out not to be there.
    public init(device: DeviceDescription, bundle name: String) {
        self.init(device: device)
        bundle = BundleName(name: name, manifestSHA256: "")
    }

    public mutating func name(_ bundle: BundleFolder) throws {
        let hash = try sha256(of: bundle.url.appending(path: Manifest.fileName))
        self.bundle = BundleName(name: bundle.manifest.name, manifestSHA256: hash)
    }

    public mutating func add(_ verification: Verification, _ target: Target) {
        verify = [target.rawValue: verification]
    }

    public mutating func add(_ benchmark: BenchmarkReport, _ plan: BenchmarkPlan, _ target: Target) {
        bench = Benchmark(
            promptTokens: plan.promptTokens, newTokens: plan.newTokens, threads: 0,
            targets: [target.rawValue: benchmark])
    }

    public func json() throws -> Data {
        try JSONFile.encode(self)
    }
}
