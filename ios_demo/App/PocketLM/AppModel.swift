import Foundation
import Observation
import PocketCore
import PocketCoreML
import UIKit

/// The app's state, and everything that changes it.
@MainActor
@Observable
final class AppModel {
    private(set) var state = AppState.choosing(problem: nil)
    private(set) var contents = BundleLibrary.Contents(bundles: [], unusable: [])
    private(set) var lines: [ChatLine] = []
    /// What the user is about to send; a question that could not be asked comes back here.
    var draft = ""
    /// Whether answers are looked up in the bundle's index of facts.
    var searches = false
    private(set) var report: Report

    private let library: BundleLibrary
    private let engine = Engine()
    private let opener: BundleOpener
    private var isStarted = false
    private var messages: [Message] = []
    private var work: Task<Void, Never>?
    private var sampling = Sampling(temperature: 0.7, topP: 0.95)
    private static let maxNewTokens = 512

    init(documents: URL, caches: URL) {
        library = BundleLibrary(folder: documents)
        opener = BundleOpener(engine: engine, packages: CompiledPackages(folder: caches.appending(path: "compiled")))
        report = Report(device: Device.description)
    }

    /// The app has come up: look for bundles, and do what the program that started the app asks for.
    func start(arguments: [String]) {
        guard !isStarted else { return }  // the window has come back: an import may be under way
        isStarted = true
        library.removePartial()
        refresh()
        do {
            let asked = try LaunchArguments(arguments)
            if asked.bundle != nil || asked.usesSample { begin { await self.run(asked) } }
        } catch {
            state = .choosing(problem: PocketError.line(for: error))
        }
    }

    func refresh() {
        do {
            contents = try library.contents()
        } catch {
            state = .choosing(problem: PocketError.line(for: error))
        }
    }

    // MARK: Bundles

    /// Import what the user has chosen in Files, or say why nothing came.
    func importBundle(from chosen: Result<URL, any Error>) {
        switch chosen {
        case .success(let url): begin { await self.importNow(from: url) }
        case .failure(let error): state = .choosing(problem: PocketError.line(for: error))
        }
    }

    /// Import the small bundle that comes with the app: its weights are random, it shows that everything works.
    func importSample() {
        begin { await self.importSampleNow() }
    }

    func open(_ bundle: BundleFolder, _ target: Target) {
        begin { await self.openNow(bundle, target) }
    }

    func close() {
        work?.cancel()
        begin {
            await self.engine.unload()
            self.state = .choosing(problem: nil)
            self.refresh()
        }
    }

    private func importSampleNow() async {
        guard let url = Bundle.main.url(forResource: "Sample", withExtension: nil) else {
            state = .choosing(problem: "this build of the app has no sample")
            return
        }
        await importNow(from: url)
    }

    private func importNow(from url: URL) async {
        state = .opening(title: "Importing \(url.lastPathComponent)", share: nil)
        let (library, report) = (library, progress())
        do {
            try await Self.copy(url, into: library) { report("Checking the copy", $0) }
            state = .choosing(problem: nil)
        } catch is CancellationError {
            state = .choosing(problem: nil)
        } catch {
            state = .choosing(problem: PocketError.line(for: error))
        }
        refresh()
    }

    /// Copying blocks: not on the main thread. Coordinated, so that iCloud and the like fetch the files first.
    private nonisolated static func copy(
        _ url: URL, into library: BundleLibrary, progress: @Sendable (Double) -> Void
    ) async throws {
        let isScoped = url.startAccessingSecurityScopedResource()
        defer { if isScoped { url.stopAccessingSecurityScopedResource() } }
        var problem: NSError?
        var result: Result<BundleFolder, any Error>?
        NSFileCoordinator().coordinate(readingItemAt: url, error: &problem) { readable in
            result = Result { try library.importBundle(from: readable, progress: progress) }
        }
        if let problem { throw problem }
        _ = try result?.get()
    }

    private func openNow(_ bundle: BundleFolder, _ target: Target) async {
        state = .opening(title: "Opening \(bundle.manifest.name)", share: nil)
        report = Report(device: Device.description)
        do {
            try report.name(bundle)
            let loaded = try await opener.open(bundle, target, report: progress())
            (lines, messages, searches) = ([], [], false)
            state = .ready(loaded, .idle(problem: loaded.factsProblem.map { "search: \($0)" }))
        } catch is CancellationError {
            report.error = "opening was stopped"
            state = .choosing(problem: nil)
        } catch {
            report.error = PocketError.line(for: error)
            state = .choosing(problem: report.error)
        }
    }

    // MARK: Chat

    func send() {
        let text = draft
        draft = ""
        begin { await self.answer(text) }
    }

    func stop() {
        work?.cancel()
    }

    /// Nobody sees the app: iOS suspends it and lets it have no GPU, so that times would be wrong and answers fail.
    func enterBackground() {
        if case .ready(_, let activity) = state, !activity.isIdle { stop() }
    }

    func forget() {
        (lines, messages) = ([], [])
    }

    private func answer(_ text: String) async {
        guard case .ready(let loaded, let activity) = state, activity.isIdle, let chat = loaded.chat else { return }
        do {
            let asked = messages + [Message(.user, text)]
            let prompt = try prepare(asked, await lookUp(asked, loaded), loaded, chat)
            messages = prompt.kept
            add(.user, text)
            add(.assistant, "")
            state = .ready(loaded, .answering)
            let pieces = try await stream(request(prompt, loaded), chat.tokenizer)
            report.answer = AnswerReport(pieces)
            finish(pieces, prompt)
            announce(lines.last?.text ?? "")
            state = .ready(loaded, .idle(problem: nil))
        } catch {
            if messages.last?.role == .user { messages.removeLast() }  // as if it had not been asked
            giveBack(text)
            report.error = PocketError.line(for: error)
            announce("Problem: \(PocketError.line(for: error))")
            state = .ready(loaded, .idle(problem: report.error))
        }
    }

    /// What the index has on a question; nil if the user has search switched off. Reading a file: not on the main thread.
    private func lookUp(_ asked: [Message], _ loaded: LoadedBundle) async -> Found? {
        guard searches, let facts = loaded.facts else { return nil }
        return await Task.detached { Search([facts]).lookUp(asked) }.value
    }

    /// The prompt of the conversation with a new question; turns that no longer fit are forgotten.
    private func prepare(
        _ asked: [Message], _ found: Found?, _ loaded: LoadedBundle, _ chat: ChatParts
    ) throws -> Conversation.Prompt {
        let conversation = Conversation(
            turns: chat.turns, tokenizer: chat.tokenizer, context: loaded.bundle.manifest.context,
            maxNewTokens: Self.maxNewTokens)
        return try conversation.prepare(asked, found, today: Day(Date()))
    }

    private func request(_ prompt: Conversation.Prompt, _ loaded: LoadedBundle) -> Request {
        Request(
            promptTokens: prompt.tokens, sampling: sampling, maxNewTokens: Self.maxNewTokens,
            stopTokens: Set(loaded.bundle.manifest.stopTokens))
    }

    private func stream(_ request: Request, _ tokenizer: any TextTokenizer) async throws -> [Piece] {
        var pieces: [Piece] = []
        for try await piece in engine.answer(request, tokenizer) {
            pieces.append(piece)
            if !lines.isEmpty { lines[lines.count - 1].text += piece.text }
        }
        return pieces
    }

    private func finish(_ pieces: [Piece], _ prompt: Conversation.Prompt) {
        let text = pieces.map(\.text).joined()
        // Templates differ in what they make of an empty answer: a turn without one is as if it had not been.
        if text.allSatisfy(\.isWhitespace) {
            messages.removeLast()
        } else {
            messages.append(Message(.assistant, text))
        }
        guard !lines.isEmpty else { return }
        lines[lines.count - 1].note = (prompt.notes + [note(pieces.last?.end)]).joined(separator: "\n")
        lines[lines.count - 1].sources = listOfSources(prompt.passages)
    }

    /// After an error: the question is the draft again, and an answer that has not begun is gone.
    private func giveBack(_ text: String) {
        if draft.isEmpty { draft = text }
        guard let last = lines.last, last.role == .assistant, last.note == nil else { return }
        if last.text.isEmpty {
            lines.removeLast(2)
        } else {
            lines[lines.count - 1].note = "Stopped by an error."
        }
    }

    private func note(_ end: Piece.End?) -> String {
        let reason =
            switch end?.reason {
            case .stop: ""
            case .length: "Cut: the limit of new tokens is reached. "
            case .context: "Cut: the context is full. "
            case .cancelled, nil: "Stopped. "
            }
        let speed = end?.timing.decodeTokensPerSecond.map { "\(Int($0.rounded())) tokens/s" }
        return reason + (speed ?? "")
    }

    /// VoiceOver does not read by itself what changes elsewhere on the screen.
    private func announce(_ text: String) {
        UIAccessibility.post(notification: .announcement, argument: text)
    }

    private func add(_ role: Role, _ text: String) {
        lines.append(ChatLine(id: (lines.last?.id ?? 0) + 1, role: role, text: text, note: nil))
    }

    // MARK: Measuring

    func verify() {
        begin { await self.measure("Verifying", self.verifyNow) }
    }

    func benchmark() {
        begin { await self.measure("Timing") { try await self.benchmarkNow($0, LaunchArguments()) } }
    }

    /// Five minutes on end: what is left when the iPhone is warm.
    func benchmarkSustained() {
        var asked = LaunchArguments()
        asked.sustainedSeconds = 300
        begin { [asked] in
            await self.measure("Timing for 5 minutes") { try await self.benchmarkNow($0, asked) }
        }
    }

    private func measure(_ title: String, _ body: @MainActor (LoadedBundle) async throws -> Void) async {
        guard case .ready(let loaded, let activity) = state, activity.isIdle else { return }
        state = .ready(loaded, .measuring(title: title, share: 0))
        do {
            try await body(loaded)
            state = .ready(loaded, .idle(problem: nil))
        } catch is CancellationError {
            report.error = "\(title) was stopped"
            state = .ready(loaded, .idle(problem: report.error))
        } catch {
            report.error = PocketError.line(for: error)
            state = .ready(loaded, .idle(problem: report.error))
        }
    }

    private func verifyNow(_ loaded: LoadedBundle) async throws {
        let (engine, progress, bundle, target) = (engine, progress(), loaded.bundle, loaded.target)
        let golden = try await Task.detached { try bundle.golden() }.value
        report.add(try await engine.verify(golden, target) { progress("Verifying", $0) }, target)
        report.computePlans = try await opener.computePlans(bundle, target)
    }

    private func benchmarkNow(_ loaded: LoadedBundle, _ asked: LaunchArguments) async throws {
        let (bundle, target, progress) = (loaded.bundle, loaded.target, progress())
        let plan = asked.plan(context: bundle.manifest.context)
        let series = try await engine.benchmark(plan, read: Device.read) { progress("Timing", $0) }
        let later = try await opener.loadAgain(bundle, target)
        let measured = BenchmarkReport(
            series, load: loaded.load, laterLoadSeconds: later, peakMemoryBytes: Device.peakMemoryBytes,
            runtime: opener.runtime(bundle, target))
        report.add(measured, plan, target)
    }

    // MARK: Automation

    /// What a program asked for, one thing after the other; then the report goes where it was asked for.
    private func run(_ asked: LaunchArguments) async {
        await openAsked(asked)
        if let prompt = asked.prompt {
            sampling = Sampling()
            await answer(prompt)
        }
        if asked.verifies { await measure("Verifying", verifyNow) }
        if asked.benchmarks {
            await measure("Timing") { try await self.benchmarkNow($0, asked) }
        }
        guard let output = asked.output else { return }
        do {
            try report.json().write(to: library.folder.appending(path: output), options: .atomic)
        } catch {
            state = .choosing(problem: "\(output): \(PocketError.line(for: error))")
        }
    }

    private func openAsked(_ asked: LaunchArguments) async {
        let name = asked.bundle ?? "Sample"
        report = Report(device: Device.description, bundle: name)
        do {
            if asked.usesSample { await importSampleNow() }
            let bundle = try library.bundle(named: name)
            guard let target = asked.target ?? bundle.targets.first(where: { $0 != .onnx }) else {
                throw PocketError("this bundle holds nothing that an iPhone runs; export with --to coreml")
            }
            await openNow(bundle, target)
        } catch {
            report.error = PocketError.line(for: error)
            state = .choosing(problem: report.error)
        }
    }

    // MARK: Work

    /// One thing at a time: what is asked for while another runs waits for it.
    private func begin(_ body: @escaping @MainActor () async -> Void) {
        let before = work
        work = Task {
            await before?.value
            report.error = nil  // of what was asked for before
            await body()
        }
    }

    /// For work elsewhere to say how far it is. What comes late, when the work is over, is dropped.
    private func progress() -> @Sendable (String, Double?) -> Void {
        { title, share in
            Task { @MainActor [weak self] in self?.show(title, share) }
        }
    }

    private func show(_ title: String, _ share: Double?) {
        switch state {
        case .opening: state = .opening(title: title, share: share)
        case .ready(let loaded, .measuring): state = .ready(loaded, .measuring(title: title, share: share ?? 0))
        default: break
        }
    }
}
