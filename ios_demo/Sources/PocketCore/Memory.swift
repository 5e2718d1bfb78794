/// What a model needs, estimated before it is loaded: iOS ends an app that takes too much, without a word.
public struct MemoryNeed: Equatable, Sendable {
    /// The Neural Engine's states end at such a multiple of tokens (export/apple.py).
    private static let cacheMultiple = 32
    /// Activations, logits, tokenizer, the app itself.
    private static let otherBytes = 96_000_000

    public let weightBytes: Int
    public let cacheBytes: Int
    public var bytes: Int { weightBytes + cacheBytes + Self.otherBytes }

    public init(_ bundle: BundleFolder, _ target: Target) {
        let shape = bundle.manifest.shape
        let slots = (bundle.manifest.context + Self.cacheMultiple - 1) / Self.cacheMultiple * Self.cacheMultiple
        // Core ML's states are fp16, ExecuTorch's cache is fp32.
        let bytesOfNumber = target == .coreml ? 2 : 4
        cacheBytes = (shape.cacheWidth ?? 0) * slots * bytesOfNumber
        weightBytes = bundle.sizeBytes(of: target)
    }

    /// - Parameter availableBytes: what the system still lets the app take (`os_proc_available_memory`).
    /// - Throws: PocketError if that is too little.
    public func check(availableBytes: Int) throws {
        guard bytes <= availableBytes else {
            throw PocketError(
                "this model needs about \(megabytes(bytes)) and iOS allows \(megabytes(availableBytes)) more; "
                    + "close other apps, or export with a smaller --context or fewer bits")
        }
    }
}
