import Foundation

/// golden.json: sequences of token ids, the logits that a correct runtime gives along them, and how far one may be off.
public struct Golden: Decodable, Equatable, Sendable {
    public static let fileName = "golden.json"
    public static let schemaVersion = 1

    /// Tokens to feed at once; the rest follow one at a time.
    public let prefill: Int
    /// Position of the first expectation in every sequence: logits behind tokens[first].
    public let first: Int
    public let sequences: [Sequence]
    public let targets: [String: Expectation]

    public struct Sequence: Decodable, Equatable, Sendable {
        public let prompt: String
        public let tokens: [Int]
        public let continuation: String
    }

    public struct Expectation: Decodable, Equatable, Sendable {
        /// Nats.
        public let toleranceKL: Double
        /// Per sequence, per position.
        public let expected: [[Position]]

        enum CodingKeys: String, CodingKey {
            case expected
            case toleranceKL = "tolerance_kl"
        }
    }

    public struct Position: Decodable, Equatable, Sendable {
        /// Of all logits.
        public let logSumExp: Double
        /// The likeliest tokens, and their logits.
        public let ids: [Int]
        public let logits: [Double]

        enum CodingKeys: String, CodingKey {
            case ids, logits
            case logSumExp = "log_sum_exp"
        }

        public init(logSumExp: Double, ids: [Int], logits: [Double]) {
            self.logSumExp = logSumExp
            self.ids = ids
            self.logits = logits
        }
    }

    enum CodingKeys: String, CodingKey {
        case prefill, first, sequences, targets
        case schemaVersion = "schema_version"
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        let version = try container.decode(Int.self, forKey: .schemaVersion)
        guard version == Self.schemaVersion else {
            throw PocketError(
                "\(Self.fileName) has schema \(version), this app reads \(Self.schemaVersion); update the app")
        }
        prefill = try container.decode(Int.self, forKey: .prefill)
        first = try container.decode(Int.self, forKey: .first)
        sequences = try container.decode([Sequence].self, forKey: .sequences)
        targets = try container.decode([String: Expectation].self, forKey: .targets)
    }

    /// Throw a PocketError unless every expectation has its tokens: nothing of the file may trap later.
    func check(vocabularySize: Int) throws {
        let vocabulary = 0..<vocabularySize
        func require(_ holds: Bool, _ what: String) throws {
            if !holds { throw PocketError("\(Self.fileName) is damaged (\(what)); export the model again") }
        }
        try require(prefill > 0 && first >= prefill - 1 && !sequences.isEmpty, "prefill, first or sequences")
        for sequence in sequences {
            try require(sequence.tokens.count > max(first, prefill), "a sequence is too short")
            try require(sequence.tokens.allSatisfy(vocabulary.contains), "a token lies outside the vocabulary")
        }
        for (name, target) in targets {
            try require(target.expected.count == sequences.count, "\(name): another number of sequences")
            for (sequence, positions) in zip(sequences, target.expected) {
                try require(positions.count == sequence.tokens.count - first, "\(name): another number of positions")
                for position in positions {
                    try require(
                        position.ids.count == position.logits.count && !position.ids.isEmpty
                            && position.ids.allSatisfy(vocabulary.contains), "\(name): a position")
                }
            }
        }
    }
}

extension Golden.Position {
    /// KL in nats of what was expected against logits: over the listed tokens and one more outcome for all others, so
    /// that it never exceeds the KL over the whole vocabulary. The same as replay_kl of runtimes/golden.py.
    public func kl(against logits: [Float]) -> Double {
        let smallest = 1e-12
        let normaliser = PocketCore.logSumExp(logits)
        var kl = 0.0
        var sumP = 0.0
        var sumQ = 0.0
        for (id, logit) in zip(ids, self.logits) {
            let logP = logit - logSumExp
            let logQ = Double(logits[id]) - normaliser
            kl += exp(logP) * (logP - logQ)
            sumP += exp(logP)
            sumQ += exp(logQ)
        }
        let restP = max(smallest, 1 - sumP)
        let restQ = max(smallest, 1 - sumQ)
        kl += restP * log(restP / restQ)
        return kl.isFinite ? kl : .infinity
    }
}

/// log(sum(exp(logits))) in double precision; NaN if a logit is.
func logSumExp(_ logits: [Float]) -> Double {
    let largest = Double(logits.max() ?? 0)
    return largest + log(logits.reduce(0.0) { $0 + exp(Double($1) - largest) })
}
