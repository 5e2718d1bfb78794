/// What a replay of golden.json found on this device.
public struct Verification: Codable, Equatable, Sendable {
    public let passed: Bool
    /// Mean over the positions, nats; nil if the runtime gave what is no number.
    public let kl: Double?
    public let toleranceKL: Double
    /// Share of positions whose most likely token is the expected one.
    public let top1: Double
    public let positions: Int
    /// One number for each sequence.
    public let klOfSequences: [Double?]
    public let seconds: Double

    enum CodingKeys: String, CodingKey {
        case passed, kl, top1, positions, seconds
        case toleranceKL = "tolerance_kl"
        case klOfSequences = "kl_of_sequences"
    }

    /// The result in a sentence.
    public var summary: String {
        guard let kl else { return "Failed: the runtime gave logits that are not numbers" }
        let compared = "KL \(scientific(kl)) of \(scientific(toleranceKL)) allowed over \(positions) tokens"
        return passed ? "Passed: \(compared)" : "Failed: \(compared)"
    }
}

/// Replay golden.json by token ids, teacher-forced: the prompt at once, then token by token, as an app feeds a model.
///
/// - Parameter progress: share of the sequences that are done, from 0 to 1.
/// - Throws: PocketError if the bundle expects nothing of this target; CancellationError.
public func verify(
    _ model: any LanguageModel, _ golden: Golden, _ target: Target, progress: (Double) -> Void = { _ in }
) throws -> Verification {
    guard let expectation = golden.targets[target.rawValue] else {
        throw PocketError(
            "golden.json has nothing for \(target.rawValue); export the model again with --to \(target.rawValue)")
    }
    let clock = ContinuousClock()
    let started = clock.now
    var sums: [Double] = []
    var agreements = 0
    for (index, (sequence, positions)) in zip(golden.sequences, expectation.expected).enumerated() {
        let replay = try replay(model, sequence.tokens, golden.prefill, golden.first, positions)
        sums.append(replay.kl)
        agreements += replay.agreements
        progress(Double(index + 1) / Double(golden.sequences.count))
    }
    let counts = expectation.expected.map(\.count)
    let positions = counts.reduce(0, +)
    let kl = sums.reduce(0, +) / Double(positions)
    return Verification(
        passed: kl <= expectation.toleranceKL, kl: kl.isFinite ? kl : nil, toleranceKL: expectation.toleranceKL,
        top1: Double(agreements) / Double(positions), positions: positions,
        klOfSequences: zip(sums, counts).map { $0.isFinite ? $0 / Double($1) : nil },
        seconds: (clock.now - started).seconds)
}

/// The sum of a sequence's KL, and how many positions have the expected token on top.
private func replay(
    _ model: any LanguageModel, _ tokens: [Int], _ prefill: Int, _ first: Int, _ expected: [Golden.Position]
) throws -> (kl: Double, agreements: Int) {
    var kl = 0.0
    var agreements = 0
    try model.reset()
    var logits = try model.run(Array(tokens[..<prefill]))
    for position in prefill - 1..<tokens.count {
        try Task.checkCancellation()
        if position >= prefill { logits = try model.run([tokens[position]]) }
        guard position >= first else { continue }
        let wanted = expected[position - first]
        kl += wanted.kl(against: logits)
        if indexOfLargest(logits.map(Double.init)) == wanted.ids[0] { agreements += 1 }
    }
    return (kl, agreements)
}
