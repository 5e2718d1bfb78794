/// What an export measured of its artifacts, as pocketlm.json carries it.
public struct Certificate: Decodable, Equatable, Sendable {
    public let passed: Bool
    public let targets: [String: TargetCertificate]
}

/// What was measured on one finished artifact; nil where a thing was not measured.
public struct TargetCertificate: Decodable, Equatable, Sendable {
    public let passed: Bool
    /// Every code and scale in the file equals the canonical one.
    public let weightsIdentical: Bool
    public let tensorsChecked: Int
    public let constantsChecked: Int
    /// Tokens over which errors are means.
    public let positions: Int
    public let quantization: Deviation?
    public let conversion: Deviation?
    public let activation: Deviation?
    public let runtime: Deviation?
    public let total: Deviation?
    public let failures: [String]
    /// What ran the artifact.
    public let evaluatedBy: String
    public let notes: [String]
    /// Constructs known to be slow or to fail on a device, with their sources.
    public let lint: [String]

    enum CodingKeys: String, CodingKey {
        case passed, positions, quantization, conversion, activation, runtime, total, failures, notes, lint
        case weightsIdentical = "weights_identical"
        case tensorsChecked = "tensors_checked"
        case constantsChecked = "constants_checked"
        case evaluatedBy = "evaluated_by"
    }

    /// The errors that were measured, with their names, in the order of the certificate.
    public var errors: [(name: String, deviation: Deviation)] {
        let all = [
            ("quantization", quantization), ("conversion", conversion), ("activation", activation),
            ("runtime", runtime),
            ("total", total),
        ]
        return all.compactMap { name, deviation in deviation.map { (name, $0) } }
    }
}

/// One kind of error: means over the certificate's positions.
public struct Deviation: Decodable, Equatable, Sendable {
    /// KL(expected || actual) in nats.
    public let kl: Double
    /// Share of positions whose most likely token is the same.
    public let top1: Double
    public let perplexityRatio: Double?
    /// What 1e-6 of noise on the embedding does to the same arithmetic.
    public let noiseFloorKL: Double?

    enum CodingKeys: String, CodingKey {
        case kl, top1
        case perplexityRatio = "perplexity_ratio"
        case noiseFloorKL = "noise_floor_kl"
    }
}
