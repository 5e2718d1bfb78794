import Foundation
import PocketCore
import PocketCoreML
import PocketExecuTorch

/// Opens a bundle: memory, hashes, compilation, weights, tokenizer, in this order. Not on the main thread.
struct BundleOpener: Sendable {
    let engine: Engine
    let packages: CompiledPackages

    /// - Parameter report: what is being done, and which share of it is, if that can be told.
    func open(
        _ bundle: BundleFolder, _ target: Target, report: @escaping @Sendable (String, Double?) -> Void
    ) async throws -> LoadedBundle {
        await engine.unload()
        keepOutOfBackups(bundle.url)
        try MemoryNeed(bundle, target).check(availableBytes: Device.availableMemoryBytes)
        try bundle.check(target) { report("Checking the files", $0) }
        let load = try await loadModel(bundle, target, report)
        report("Loading the tokenizer", nil)
        // Without a tokenizer or a template there is still a model to verify and to time, and without an index to chat.
        let (chat, chatProblem) = attempt { try chatParts(bundle) }
        let hasFacts = FileManager.default.fileExists(atPath: bundle.facts.path)
        let (facts, factsProblem) = hasFacts ? attempt { try FactIndex(bundle.facts) } : (nil, nil)
        return LoadedBundle(
            bundle: bundle, target: target, load: load, chat: chat, chatProblem: chatProblem, facts: facts,
            factsProblem: factsProblem)
    }

    private func attempt<Part>(_ make: () throws -> Part) -> (Part?, String?) {
        do { return (try make(), nil) } catch { return (nil, PocketError.line(for: error)) }
    }

    /// Load the model again: the system has seen it before, so that this is a later load.
    func loadAgain(_ bundle: BundleFolder, _ target: Target) async throws -> Double {
        await engine.unload()
        return try await loadModel(bundle, target) { _, _ in }.firstSeconds
    }

    /// What runs a target here, for reports.
    func runtime(_ bundle: BundleFolder, _ target: Target) -> String {
        guard target == .coreml else { return "ExecuTorch, XNNPACK" }
        return bundle.manifest.isBlockwise ? "Core ML, CPU and GPU" : "Core ML, all compute units"
    }

    /// Where Core ML would run the operations of both functions; nothing for other targets.
    func computePlans(_ bundle: BundleFolder, _ target: Target) async throws -> [ComputePlan] {
        guard target == .coreml else { return [] }
        let compiled = try await packages.compiled(bundle).url
        let units = CoreMLModel.computeUnits(for: bundle.manifest)
        return [
            try await ComputePlan.load(compiled: compiled, function: "decode", units: units),
            try await ComputePlan.load(compiled: compiled, function: "prefill", units: units),
        ]
    }

    /// Gigabytes that anybody can copy again are nothing for iCloud; Apple's data storage guidelines ask for this.
    private func keepOutOfBackups(_ folder: URL) {
        var folder = folder
        var values = URLResourceValues()
        values.isExcludedFromBackup = true
        try? folder.setResourceValues(values)  // a larger backup is no reason not to open the bundle
    }

    private func loadModel(
        _ bundle: BundleFolder, _ target: Target, _ report: @Sendable (String, Double?) -> Void
    ) async throws -> LoadTimes {
        let manifest = bundle.manifest
        switch target {
        case .coreml:
            report("Compiling the model for this iPhone", nil)
            let compiled = try await packages.compiled(bundle)
            try Task.checkCancellation()
            report("Loading the model", nil)
            let seconds = try await engine.load {
                try CoreMLModel(
                    compiled: compiled.url, manifest: manifest, units: CoreMLModel.computeUnits(for: manifest))
            }
            return LoadTimes(compileSeconds: compiled.seconds, firstSeconds: seconds)
        case .executorch:
            report("Loading the model", nil)
            let folder = bundle.folder(of: .executorch)
            let seconds = try await engine.load { try ExecuTorchModel(folder: folder) }
            return LoadTimes(compileSeconds: nil, firstSeconds: seconds)
        case .onnx:
            throw PocketError("iPhones run coreml and executorch here; export with --to coreml")
        }
    }

    private func chatParts(_ bundle: BundleFolder) throws -> ChatParts {
        let turns = try bundle.chatTurns()
        return ChatParts(turns: turns, tokenizer: try HuggingFaceTokenizer(folder: bundle.url, control: turns.control))
    }
}
