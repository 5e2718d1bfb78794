import PocketCore
import SwiftUI

/// The conversation, streamed as the model writes it.
struct ChatView: View {
    @Bindable var model: AppModel
    let loaded: LoadedBundle
    let activity: Activity

    var body: some View {
        VStack(spacing: 0) {
            conversation
            if let problem = activity.problem { ProblemRow(problem).padding() }
            if let reason = loaded.chatProblem {
                ProblemRow(reason).padding()
            } else {
                if loaded.facts != nil { search }
                entry
            }
        }
        .toolbar {
            ToolbarItem(placement: .topBarTrailing) {
                Button("New chat", systemImage: "square.and.pencil") { model.forget() }
                    .disabled(!activity.isIdle)
            }
        }
    }

    private var conversation: some View {
        ScrollView {
            LazyVStack(alignment: .leading, spacing: 12) {
                ForEach(model.lines) { ChatLineView(line: $0) }
            }
            .padding()
        }
        .defaultScrollAnchor(.bottom)
        .scrollDismissesKeyboard(.interactively)  // Return starts a new line, and the keyboard covers the tabs
    }

    private var search: some View {
        Toggle("Search", isOn: $model.searches)
            .font(.subheadline)
            .padding(8)
            .accessibilityIdentifier("search")
    }

    private var entry: some View {
        HStack(alignment: .bottom) {
            TextField("Message", text: $model.draft, axis: .vertical)
                .lineLimit(1...6)
                .textFieldStyle(.roundedBorder)
                .accessibilityIdentifier("message")
            if activity == .answering {
                Button("Stop", systemImage: "stop.circle.fill") { model.stop() }
                    .accessibilityIdentifier("stop")
            } else {
                Button("Send", systemImage: "arrow.up.circle.fill", action: model.send)
                    .disabled(!activity.isIdle || model.draft.allSatisfy(\.isWhitespace))
                    .accessibilityIdentifier("send")
            }
        }
        .labelStyle(.iconOnly)
        .imageScale(.large)
        .padding()
    }
}

/// One message; VoiceOver reads who wrote it first.
private struct ChatLineView: View {
    let line: ChatLine

    var body: some View {
        VStack(alignment: .leading, spacing: 4) {
            Text(isUser ? "You" : "Model").font(.caption).foregroundStyle(.secondary)
            Text(line.text).textSelection(.enabled)
            if !line.sources.isEmpty { Text("Sources:\n\(line.sources)").font(.footnote).textSelection(.enabled) }
            if let note = line.note, !note.isEmpty { Text(note).font(.caption).foregroundStyle(.secondary) }
        }
        .padding(12)
        .background(
            isUser ? Color.accentColor.opacity(0.15) : Color.secondary.opacity(0.1), in: .rect(cornerRadius: 12)
        )
        .accessibilityElement(children: .combine)
        .accessibilityIdentifier(isUser ? "question" : line.note == nil ? "answer-growing" : "answer")
    }

    private var isUser: Bool { line.role == .user }
}
