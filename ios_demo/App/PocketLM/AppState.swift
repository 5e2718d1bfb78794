import PocketCore

/// What the app is doing: every screen follows from this.
enum AppState {
    /// Which bundle? With what went wrong before, if anything did.
    case choosing(problem: String?)
    /// A bundle is imported, checked or loaded; the share is nil where it cannot be told.
    case opening(title: String, share: Double?)
    case ready(LoadedBundle, Activity)

    /// Whether something runs that takes its time.
    var isBusy: Bool {
        switch self {
        case .choosing: false
        case .opening: true
        case .ready(_, let activity): !activity.isIdle
        }
    }
}

/// What a loaded model is doing.
enum Activity: Equatable {
    /// With what went wrong before, if anything did.
    case idle(problem: String?)
    case answering
    case measuring(title: String, share: Double)

    var isIdle: Bool {
        if case .idle = self { true } else { false }
    }

    var problem: String? {
        if case .idle(let problem) = self { problem } else { nil }
    }
}

/// A bundle whose model is in memory.
struct LoadedBundle: Sendable {
    let bundle: BundleFolder
    let target: Target
    let load: LoadTimes
    /// Nil where the bundle cannot chat, with the reason in ``chatProblem``.
    let chat: ChatParts?
    let chatProblem: String?
    /// Where answers can be looked up; nil without an index, or with one that cannot be read, for ``factsProblem``.
    let facts: FactIndex?
    let factsProblem: String?
}

/// What chatting needs besides the model.
struct ChatParts: Sendable {
    let turns: ChatTurns
    let tokenizer: any TextTokenizer
}

/// A line of the chat as it is shown.
struct ChatLine: Identifiable, Equatable {
    let id: Int
    let role: Role
    var text: String
    /// Why an answer ended early, and how fast it was.
    var note: String?
    /// Where an answer was looked up, a line each.
    var sources = ""
}
