import SwiftUI

@main
struct PocketLMApp: App {
    @State private var model = AppModel(documents: .documentsDirectory, caches: .cachesDirectory)

    var body: some Scene {
        WindowGroup {
            RootView(model: model)
                .task { await model.start(arguments: Array(ProcessInfo.processInfo.arguments.dropFirst())) }
        }
    }
}

/// One screen for each state.
struct RootView: View {
    let model: AppModel

    var body: some View {
        switch model.state {
        case .choosing(let problem):
            LibraryView(model: model, problem: problem)
        case .opening(let title, let share):
            ProgressScreen(title: title, share: share)
        case .ready(let loaded, let activity):
            BundleView(model: model, loaded: loaded, activity: activity)
        }
    }
}

/// A long step with its progress; nil where that cannot be told.
struct ProgressScreen: View {
    let title: String
    let share: Double?

    var body: some View {
        VStack(spacing: 16) {
            ProgressView(value: share) {
                Text(title)
            }
            .accessibilityIdentifier("progress")
        }
        .padding()
    }
}
