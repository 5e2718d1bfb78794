import SwiftUI
import UIKit

@main
struct PocketLMApp: App {
    @State private var model = AppModel(documents: .documentsDirectory, caches: .cachesDirectory)

    var body: some Scene {
        WindowGroup {
            RootView(model: model)
                .task { model.start(arguments: Array(ProcessInfo.processInfo.arguments.dropFirst())) }
        }
    }
}

/// One screen for each state.
struct RootView: View {
    let model: AppModel
    @Environment(\.scenePhase) private var phase

    var body: some View {
        screen
            // The screen's lock would suspend a benchmark of five minutes, or an import.
            .onChange(of: model.state.isBusy, initial: true) {
                UIApplication.shared.isIdleTimerDisabled = model.state.isBusy
            }
            .onChange(of: phase) {
                if phase == .background { model.enterBackground() }
            }
    }

    @ViewBuilder private var screen: some View {
        switch model.state {
        case .choosing(let problem):
            LibraryView(model: model, problem: problem)
        case .opening(let title, let share):
            ProgressScreen(title: title, share: share) { model.stop() }
        case .ready(let loaded, let activity):
            BundleView(model: model, loaded: loaded, activity: activity)
        }
    }
}

/// A long step with its progress; nil where that cannot be told.
struct ProgressScreen: View {
    let title: String
    let share: Double?
    let cancel: @MainActor () -> Void

    var body: some View {
        VStack(spacing: 16) {
            ProgressView(value: share) {
                Text(title)
            }
            .accessibilityIdentifier("progress")
            Button("Cancel", action: cancel)
                .accessibilityIdentifier("cancel")
        }
        .padding()
    }
}
