import PocketCore
import SwiftUI

/// A loaded bundle: chat, certificate, and what this iPhone makes of it.
struct BundleView: View {
    let model: AppModel
    let loaded: LoadedBundle
    let activity: Activity

    var body: some View {
        TabView {
            Tab("Chat", systemImage: "bubble.left.and.bubble.right") {
                screen { ChatView(model: model, loaded: loaded, activity: activity) }
            }
            Tab("Certificate", systemImage: "checkmark.seal") {
                screen { CertificateView(manifest: loaded.bundle.manifest, target: loaded.target) }
            }
            Tab("This iPhone", systemImage: "iphone") {
                screen { DeviceView(model: model, loaded: loaded, activity: activity) }
            }
        }
    }

    private func screen(@ViewBuilder _ content: () -> some View) -> some View {
        NavigationStack {
            content()
                .navigationTitle(loaded.bundle.manifest.name)
                .navigationBarTitleDisplayMode(.inline)
                .toolbar {
                    ToolbarItem(placement: .topBarLeading) {
                        Button("Bundles", systemImage: "chevron.backward") { model.close() }
                            .accessibilityIdentifier("close")
                    }
                }
        }
    }
}
