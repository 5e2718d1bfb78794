/// What to measure, with the names and defaults of `pocketlm bench`.
public struct BenchmarkPlan: Equatable, Sendable {
    public var promptTokens = 256
    public var newTokens = 64
    public var runs = 5
    public var sustainedSeconds = 0.0

    public init(promptTokens: Int = 256, newTokens: Int = 64, runs: Int = 5, sustainedSeconds: Double = 0) {
        self.promptTokens = promptTokens
        self.newTokens = newTokens
        self.runs = runs
        self.sustainedSeconds = sustainedSeconds
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

/// A window of a sustained run.
public struct BenchmarkWindow: Codable, Equatable, Sendable {
    public let atSeconds: Double
    public let decodeTokensPerSecond: Double
    public let reading: Reading

    enum CodingKeys: String, CodingKey {
        case reading
        case atSeconds = "at_seconds"
        case decodeTokensPerSecond = "decode_tokens_per_second"
    }
}

/// All that was timed, and what the phone was like before and after.
public struct BenchmarkSeries: Equatable, Sendable {
    public let runs: [BenchmarkRun]
    public let sustained: [BenchmarkWindow]
    public let before: Reading
    public let after: Reading
}

/// Time a model on random tokens. One more run comes first: it touches every page of the weights. A sustained run goes
/// on until its time is over, since phones slow down when they get warm.
///
/// - Parameter progress: share of the work that is done, from 0 to 1.
/// - Throws: PocketError if prompt and new tokens do not fit the context; CancellationError.
public func benchmark(
    _ model: any LanguageModel, _ plan: BenchmarkPlan, read: () -> Reading, progress: (Double) -> Void = { _ in }
) throws -> BenchmarkSeries {
    guard plan.promptTokens > 0, plan.newTokens > 0, plan.runs > 0 else {
        throw PocketError("a benchmark needs at least one prompt token, one new token and one run")
    }
    guard plan.promptTokens + plan.newTokens <= model.context else {
        throw PocketError(
            "\(plan.promptTokens) + \(plan.newTokens) tokens do not fit the context of \(model.context); ask for fewer")
    }
    let before = read()
    var random = UniformNumbers(seed: 0)
    let tokens = (0..<plan.promptTokens).map { _ in Int(random.next() * Double(model.vocabularySize)) }
    let short = plan.sustainedSeconds > 0 ? 0.1 : 1  // of the progress
    _ = try timedRun(model, tokens, plan.newTokens)
    var runs: [BenchmarkRun] = []
    for index in 1...plan.runs {
        progress(short * Double(index) / Double(plan.runs + 1))
        runs.append(try timedRun(model, tokens, plan.newTokens))
    }
    let windows = try sustained(model, tokens, plan, read) { progress(short + (1 - short) * $0) }
    progress(1)
    return BenchmarkSeries(runs: runs, sustained: windows, before: before, after: read())
}

private func sustained(
    _ model: any LanguageModel, _ tokens: [Int], _ plan: BenchmarkPlan, _ read: () -> Reading,
    progress: (Double) -> Void
) throws -> [BenchmarkWindow] {
    let clock = ContinuousClock()
    let started = clock.now
    var windows: [BenchmarkWindow] = []
    while (clock.now - started).seconds < plan.sustainedSeconds {
        let run = try timedRun(model, tokens, plan.newTokens)
        let seconds = (clock.now - started).seconds
        windows.append(
            BenchmarkWindow(atSeconds: seconds, decodeTokensPerSecond: run.decodeTokensPerSecond, reading: read()))
        progress(min(1, seconds / plan.sustainedSeconds))
    }
    return windows
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
    public static func fitting(_ context: Int, sustainedSeconds: Double = 0) -> BenchmarkPlan {
        var plan = BenchmarkPlan(sustainedSeconds: sustainedSeconds)
        if plan.promptTokens + plan.newTokens > context {
            plan.promptTokens = max(1, context / 2)
            plan.newTokens = max(1, context / 4)
        }
        return plan
    }
}
