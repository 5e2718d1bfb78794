/// Why an answer ended.
public enum EndReason: String, Codable, Equatable, Sendable {
    /// The model wrote a stop token.
    case stop
    /// As many tokens as were asked for.
    case length
    /// The cache is full.
    case context
    /// The user stopped it.
    case cancelled
}

/// How long an answer took. Rates are nil where there was nothing to measure.
public struct Timing: Codable, Equatable, Sendable {
    /// Of the whole prompt.
    public let promptTokens: Int
    /// Those of them that were in the cache already.
    public let cachedTokens: Int
    /// With the stop token.
    public let generatedTokens: Int
    /// From the call to the first token.
    public let timeToFirstTokenSeconds: Double
    /// Of the prompt tokens that had to be run.
    public let prefillTokensPerSecond: Double?
    /// Of the generated tokens after the first.
    public let decodeTokensPerSecond: Double?

    enum CodingKeys: String, CodingKey {
        case promptTokens = "prompt_tokens"
        case cachedTokens = "cached_tokens"
        case generatedTokens = "generated_tokens"
        case timeToFirstTokenSeconds = "time_to_first_token_seconds"
        case prefillTokensPerSecond = "prefill_tokens_per_second"
        case decodeTokensPerSecond = "decode_tokens_per_second"
    }
}

/// A part of an answer: one generated token, or the end.
public struct Piece: Equatable, Sendable {
    /// Nil at an end for any other reason than a stop token.
    public let token: Int?
    /// What can be shown now; parts of a character are held back until it is whole.
    public let text: String
    public let end: End?

    public struct End: Equatable, Sendable {
        public let reason: EndReason
        public let timing: Timing
    }
}

/// What an answer needs besides the model.
public struct Request: Sendable {
    public let promptTokens: [Int]
    public let sampling: Sampling
    public let maxNewTokens: Int
    public let stopTokens: Set<Int>

    public init(promptTokens: [Int], sampling: Sampling, maxNewTokens: Int, stopTokens: Set<Int>) {
        self.promptTokens = promptTokens
        self.sampling = sampling
        self.maxNewTokens = maxNewTokens
        self.stopTokens = stopTokens
    }
}

/// Answer a prompt, token after token; the last piece has the reason for the end, and the timing.
///
/// - Parameters:
///   - cached: the tokens in the model's cache, kept up to date: pass the same for each turn of a conversation, and
///     only what is new of a prompt is run.
///   - emit: gets each piece as it is there. Its time is not counted as the model's.
/// - Throws: PocketError if the prompt is empty or does not fit the context. Cancelling the task ends the answer.
public func generate(
    _ model: any LanguageModel, _ tokenizer: any TextTokenizer, _ request: Request, cached: inout [Int],
    emit: (Piece) -> Void
) throws {
    guard request.maxNewTokens >= 1 else {
        throw PocketError("the number of new tokens must be at least 1, it is \(request.maxNewTokens)")
    }
    var sampler = try Sampler(request.sampling)
    var watch = AnswerWatch()
    var (logits, reused) = try prefill(model, request.promptTokens, cached: &cached)
    watch.prefilled()
    var history = request.promptTokens
    var decoder = StreamDecoder(tokenizer)
    while true {
        let token = try sampler.next(logits, history: history)
        history.append(token)
        watch.sampled()
        let reason = endReason(model, request, token: token, generated: history.count - request.promptTokens.count)
        if reason != .stop {
            let text = decoder.add(token)
            watch.pause { emit(Piece(token: token, text: text, end: nil)) }
        }
        if let reason {
            let counts = (request.promptTokens.count, reused, history.count - request.promptTokens.count)
            let end = Piece.End(
                reason: reason, timing: watch.timing(prompt: counts.0, reused: counts.1, generated: counts.2))
            emit(Piece(token: reason == .stop ? token : nil, text: decoder.finish(), end: end))
            return
        }
        logits = try run(model, [token], cached: &cached)
    }
}

/// Why this token is the last, if it is.
private func endReason(_ model: any LanguageModel, _ request: Request, token: Int, generated: Int) -> EndReason? {
    if request.stopTokens.contains(token) { return .stop }
    if Task.isCancelled { return .cancelled }
    if generated >= request.maxNewTokens { return .length }
    return model.position >= model.context ? .context : nil
}

/// Logits behind the prompt, and how many of its tokens did not have to be run.
private func prefill(_ model: any LanguageModel, _ prompt: [Int], cached: inout [Int]) throws -> ([Float], Int) {
    guard prompt.count <= model.context else {
        throw PocketError(
            "the prompt has \(prompt.count) tokens and the context holds \(model.context); "
                + "shorten it or export with a larger --context")
    }
    var reused = cached.count
    // A failed run may have left other tokens in the cache than were noted. One token at least must be run for its
    // logits, and a model cannot take back the last one.
    if model.position != reused || reused >= prompt.count || !prompt.starts(with: cached) {
        try model.reset()
        cached = []
        reused = 0
    }
    return (try run(model, Array(prompt[reused...]), cached: &cached), reused)
}

private func run(_ model: any LanguageModel, _ tokens: [Int], cached: inout [Int]) throws -> [Float] {
    let logits = try model.run(tokens)
    cached += tokens
    return logits
}

/// Measures one answer.
private struct AnswerWatch {
    private let clock = ContinuousClock()
    private let started: ContinuousClock.Instant
    private var prefill = Duration.zero
    private var first: ContinuousClock.Instant?
    private var last: ContinuousClock.Instant
    private var paused = Duration.zero

    init() {
        started = clock.now
        last = started
    }

    mutating func prefilled() {
        prefill = clock.now - started
    }

    mutating func sampled() {
        last = clock.now
        first = first ?? last
    }

    mutating func pause(_ body: () -> Void) {
        paused += clock.measure(body)
    }

    func timing(prompt: Int, reused: Int, generated: Int) -> Timing {
        let first = first ?? last
        let decoding = last - first - paused
        return Timing(
            promptTokens: prompt, cachedTokens: reused, generatedTokens: generated,
            timeToFirstTokenSeconds: (first - started).seconds,
            prefillTokensPerSecond: rate(prompt - reused, prefill),
            decodeTokensPerSecond: rate(generated - 1, decoding))
    }
}

func rate(_ tokens: Int, _ time: Duration) -> Double? {
    tokens > 0 && time > .zero ? Double(tokens) / time.seconds : nil
}

extension Duration {
    public var seconds: Double {
        Double(components.seconds) + Double(components.attoseconds) * 1e-18
    }
}
