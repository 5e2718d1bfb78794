/// What to measure, with the names and defaults of `pocketlm bench`.
public struct BenchmarkPlan: Equatable, Sendable {
    public var promptTokens = 256
    public var newTokens = 64
    public var runs = 5

    public init(promptTokens: Int = 256, newTokens: Int = 64, runs: Int = 5) {
        self.promptTokens = promptTokens
        self.newTokens = newTokens
        self.runs = runs
    }
}

/// One run: prefill of the prompt, then decoding.
public struct BenchmarkRun: Codable, Equatable, Sendable {
    public let prefillTokensPerSecond: Double
    public let decodeTokensPerSecond: Double
    public let timeToFirstTokenSeconds: Double

    enum CodingKeys: String, CodingKey {
        case prefillTokensPerSecond = "prefill_tokens_per_second"
        case decodeTokensPerSecond = "decode_tokens_per_second"
        case timeToFirstTokenSeconds = "time_to_first_token_seconds"
    }
}

/// Time a model on random tokens. One more run comes first: it touches every page of the weights.
///
/// - Parameter progress: share of the runs that are done, from 0 to 1.
/// - Throws: PocketError if prompt and new tokens do not fit the context; CancellationError.
public func benchmark(
    _ model: any LanguageModel, _ plan: BenchmarkPlan, progress: (Double) -> Void = { _ in }
) throws -> [BenchmarkRun] {
    guard plan.promptTokens > 0, plan.newTokens > 0, plan.runs > 0 else {
        throw PocketError("a benchmark needs at least one prompt token, one new token and one run")
    }
    guard plan.promptTokens + plan.newTokens <= model.context else {
        throw PocketError(
            "\(plan.promptTokens) + \(plan.newTokens) tokens do not fit the context of \(model.context); ask for fewer")
    }
    var random = UniformNumbers(seed: 0)
    let tokens = (0..<plan.promptTokens).map { _ in Int(random.next() * Double(model.vocabularySize)) }
    _ = try timedRun(model, tokens, plan.newTokens)
    var series: [BenchmarkRun] = []
    for index in 1...plan.runs {
        progress(Double(index) / Double(plan.runs + 1))
        series.append(try timedRun(model, tokens, plan.newTokens))
    }
    progress(1)
    return series
}

private func timedRun(_ model: any LanguageModel, _ tokens: [Int], _ newTokens: Int) throws -> BenchmarkRun {
    let clock = ContinuousClock()
    try model.reset()
    let started = clock.now
    var token = likeliest(try model.run(tokens))
    let first = clock.now
    for _ in 0..<newTokens {
        try Task.checkCancellation()
        token = likeliest(try model.run([token]))
    }
    let decoding = (clock.now - first).seconds
    let prefill = (first - started).seconds
    return BenchmarkRun(
        prefillTokensPerSecond: Double(tokens.count) / prefill, decodeTokensPerSecond: Double(newTokens) / decoding,
        timeToFirstTokenSeconds: prefill)
}

private func likeliest(_ logits: [Float]) -> Int {
    var best = 0
    for index in logits.indices where logits[index] > logits[best] { best = index }
    return best
}

/// The middle value, or the mean of the two in the middle.
func median(_ values: [Double]) -> Double {
    let sorted = values.sorted()
    guard !sorted.isEmpty else { return 0 }
    let middle = sorted.count / 2
    return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

extension BenchmarkPlan {
    /// The usual plan, or a shorter one where the context holds less.
    public static func fitting(_ context: Int) -> BenchmarkPlan {
        let usual = BenchmarkPlan()
        guard usual.promptTokens + usual.newTokens > context else { return usual }
        return BenchmarkPlan(promptTokens: max(1, context / 2), newTokens: max(1, context / 4), runs: usual.runs)
    }
}
