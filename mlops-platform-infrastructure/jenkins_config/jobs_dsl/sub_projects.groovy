// One job a sub-project. They share the repository; each Jenkinsfile builds only what changed in its own part.
def subProjects = [
    'feature-store-management'         : 'feature_store',
    'ml-model-development'             : 'ml_model_development',
    'ml-model-services'                : 'ml_model_services',
    'mlops-orchestration-pipelines'    : 'mlops_orchestration',
    'mlops-platform-infrastructure'    : 'platform_infra',
    'ml-reporting-and-monitoring-logic': 'reporting_monitoring',
]

subProjects.each { root, name ->
    multibranchPipelineJob(root) {
        displayName(root)
        description("Checks, builds and deploys ${root}, as jenkins_config/Jenkinsfile_${name} says.")
        branchSources {
            git {
                id(root)
                remote(GIT_REMOTE)
                credentialsId('git')
                includes('main feature/* fix/*')
            }
        }
        factory {
            workflowBranchProjectFactory {
                scriptPath("mlops-platform-infrastructure/jenkins_config/Jenkinsfile_${name}")
            }
        }
        triggers {
            periodicFolderTrigger {
                interval('5m')
            }
        }
        orphanedItemStrategy {
            discardOldItems {
                numToKeep(10)
            }
        }
    }
}
