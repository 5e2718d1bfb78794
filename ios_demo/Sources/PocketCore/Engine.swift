import Foundation

/// Owns the model: all that runs it, one thing after the other.
public actor Engine {
    #if canImport(Darwin)
        /// A queue of its own: a model blocks the thread that it runs on, and Swift's own threads are few.
        private let queue = DispatchSerialQueue(label: "pocketlm.engine")
        public nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }
    #endif

    private var model: (any LanguageModel)?
    private var cached: [Int] = []

    public init() {}

    /// Open a model in place of the one that was there; the time it took in seconds.
    public func load(_ open: @Sendable () throws -> any LanguageModel) throws -> Double {
        unload()  // first: two models at once may be more than the phone has room for
        let clock = ContinuousClock()
        let started = clock.now
        model = try open()
        return (clock.now - started).seconds
    }

    public func unload() {
        model = nil
        cached = []
    }

    /// Answer a prompt. The stream ends when the task that reads it is cancelled, and the model stops with it.
    public nonisolated func answer(_ request: Request, _ tokenizer: any TextTokenizer) -> AsyncThrowingStream<
        Piece, any Error
    > {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    try await self.generate(request, tokenizer) { continuation.yield($0) }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    public func verify(
        _ golden: Golden, _ target: Target, progress: @Sendable (Double) -> Void = { _ in }
    ) throws -> Verification {
        cached = []
        return try PocketCore.verify(opened(), golden, target, progress: progress)
    }

    public func benchmark(
        _ plan: BenchmarkPlan, read: @Sendable () -> Reading, progress: @Sendable (Double) -> Void = { _ in }
    ) throws -> BenchmarkSeries {
        cached = []
        return try PocketCore.benchmark(opened(), plan, read: read, progress: progress)
    }

    private func generate(_ request: Request, _ tokenizer: any TextTokenizer, emit: @Sendable (Piece) -> Void) throws {
        try PocketCore.generate(opened(), tokenizer, request, cached: &cached, emit: emit)
    }

    private func opened() throws -> any LanguageModel {
        guard let model else { throw PocketError("no model is loaded; choose a bundle") }
        return model
    }
}
