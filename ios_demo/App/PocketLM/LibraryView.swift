import PocketCore
import SwiftUI
import UniformTypeIdentifiers

/// The bundles on this iPhone, and ways to get more.
struct LibraryView: View {
    let model: AppModel
    let problem: String?
    @State private var isImporting = false

    var body: some View {
        NavigationStack {
            List {
                if let problem { ProblemRow(problem) }
                Section("Bundles on this iPhone") {
                    ForEach(model.contents.bundles, id: \.url) { BundleRow(model: model, bundle: $0) }
                    if model.contents.bundles.isEmpty { Text("None yet").foregroundStyle(.secondary) }
                }
                if !model.contents.unusable.isEmpty {
                    Section("Cannot be used") {
                        ForEach(model.contents.unusable, id: \.self) { Text($0).font(.footnote) }
                    }
                }
                Section {
                    Button("Import from Files", systemImage: "square.and.arrow.down") { isImporting = true }
                    Button("Add the sample", systemImage: "shippingbox") { model.importSample() }
                        .accessibilityIdentifier("sample")
                } footer: {
                    Text(
                        "Make a bundle with pocketlm export --to coreml. In Finder, drag it onto this app under the "
                            + "iPhone's Files. The sample has random weights: it writes nonsense, and shows that "
                            + "everything works."
                    )
                }
            }
            .navigationTitle("pocketlm")
            .refreshable { await model.refresh() }
            .fileImporter(isPresented: $isImporting, allowedContentTypes: [.folder]) {
                model.importBundle(from: $0)
            }
        }
    }
}

/// A bundle with a button for each artifact that an iPhone runs.
private struct BundleRow: View {
    let model: AppModel
    let bundle: BundleFolder

    var body: some View {
        VStack(alignment: .leading, spacing: 8) {
            Text(bundle.manifest.name).font(.headline)
            Text("\(bundle.manifest.recipe.name), context \(bundle.manifest.context) tokens")
                .font(.subheadline)
                .foregroundStyle(.secondary)
            ForEach(bundle.targets.filter { $0 != .onnx }, id: \.self) { target in
                Button("Open \(target.title), \(megabytes(bundle.sizeBytes(of: target)))") {
                    model.open(bundle, target)
                }
                .buttonStyle(.bordered)
                .accessibilityIdentifier("open-\(bundle.url.lastPathComponent)-\(target.rawValue)")
            }
        }
        .accessibilityElement(children: .contain)
    }
}

/// What went wrong, where it cannot be overlooked.
struct ProblemRow: View {
    let problem: String

    init(_ problem: String) {
        self.problem = problem
    }

    var body: some View {
        Label(problem, systemImage: "exclamationmark.triangle")
            .foregroundStyle(.red)
            .accessibilityLabel("Problem: \(problem)")
            .accessibilityIdentifier("problem")
    }
}

extension PocketCore.Target {
    /// As people write it.
    var title: String {
        switch self {
        case .coreml: "Core ML"
        case .executorch: "ExecuTorch"
        case .onnx: "ONNX"
        }
    }
}
